"""Verb `view`: volumes and cells in Neuroglancer, on this machine or as a data set for a web server."""

from __future__ import annotations

import argparse

from canvas_fm.cli.parser import Parser, Verbs, add_list, add_switch, add_verb, add_volume_flags


def add_verbs(verbs: Verbs) -> None:
    add_verb(
        verbs,
        "view",
        run_view,
        "look at volumes with cells, heat maps and labels in Neuroglancer",
        "Open volumes, as channels of one view, with points coloured by P(cell), score or label, a legend "
        "and a threshold slider, in Neuroglancer's own client, offline (canvas-fm[neuroglancer]). "
        "Ctrl-C ends it. --export writes static files for any web server; VOLUME can be such a folder too.",
        fill=_fill,
    )


def _fill(view: Parser) -> None:
    view.add_argument("volumes", nargs="+", metavar="VOLUME", help="volumes, or one folder of --export")
    add_list(view, "--points", "CELLS.csv", "points in voxels of the first volume")
    add_list(view, "--labels", "LABELS", "label volumes")
    add_list(view, "--heat-map", "VOLUME", "heat maps, drawn over the volumes")
    view.add_argument(
        "--color-by",
        metavar="COLUMN",
        help="column that colours the points; default: the first of p_cell, score, label, region",
    )
    view.add_argument("--export", metavar="DIR", help="write a data set for a web server instead")
    view.add_argument(
        "--viewer",
        metavar="ADDRESS",
        help="of --export: the Neuroglancer that the page opens; default: the public one",
    )
    add_switch(view, "--raw", "of --export: chunks are not compressed (faster, larger)")
    view.add_argument("--port", type=int, default=0, metavar="PORT", help="default: a free one")
    add_switch(view, "--no-browser", "print the address only")
    add_volume_flags(view)


def run_view(args: argparse.Namespace) -> None:
    from canvas_fm.cli.output import print_result
    from canvas_fm.viewing.neuroglancer.export import export_view
    from canvas_fm.viewing.neuroglancer.view import open_view

    layers = {
        "points": args.points,
        "labels": args.labels,
        "heat_maps": args.heat_map,
        "color_by": args.color_by,
        **args.volume_options.explicit,
    }
    if args.export is not None:
        if args.viewer is not None:
            layers["viewer"] = args.viewer
        layers["encoding"] = "raw" if args.raw else "gzip"
        print_result(export_view(args.volumes, args.export, **layers), args.json)
        return
    with open_view(args.volumes, port=args.port, **layers) as view:
        print_result({"view": view.url, "state": view.state_url}, args.json)
        _wait(None if args.no_browser else view.url)


def _wait(url: str | None) -> None:
    """Open the page in a browser, and answer requests until Ctrl-C."""
    import sys
    import threading
    import webbrowser

    sys.stdout.flush()
    if url is not None:
        webbrowser.open(url)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print()
