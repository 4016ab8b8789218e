"""Verb `export-onnx`: a model as an ONNX graph for other runtimes."""

from __future__ import annotations

import argparse

from canvas_fm.cli.parser import Parser, Verbs, add_switch, add_verb


def add_verbs(verbs: Verbs) -> None:
    add_verb(
        verbs,
        "export-onnx",
        run_export_onnx,
        "an encoder or detector as an ONNX graph, with a description for bioimage.io",
        "Write OUT.onnx: raw intensities and their window in, embeddings or the heat map out, for any number "
        "of crops. onnxruntime has to give torch's numbers to 1e-5 before the file is kept. Beside it: "
        "OUT.rdf.yaml and its test tensors, for bioimage.io, and the model's card.",
        fill=_fill_export_onnx,
    )


def _fill_export_onnx(export: Parser) -> None:
    export.add_argument(
        "model", metavar="MODEL", help="folder of an encoder or detector, or the name of a shipped one"
    )
    export.add_argument("out", metavar="OUT.onnx", help="file to write")
    add_switch(export, "--overwrite", "replace OUT where it is there already")


def run_export_onnx(args: argparse.Namespace) -> dict:
    from canvas_fm.models.load_model import load
    from canvas_fm.models.onnx_export.graph import export_onnx

    exported = export_onnx(load(args.model), args.out, overwrite=args.overwrite)
    return {
        "written": str(exported.path),
        "description": str(exported.description),
        "max_difference": exported.max_difference,
        "sha256": exported.sha256,
    }
