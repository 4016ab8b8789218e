"""From a microscope's files to a clean volume: conversion, destriping, flat-field correction."""
