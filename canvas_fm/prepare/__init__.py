"""What a microscope wrote becomes a clean volume: conversion, destriping, flat-field correction."""
