"""Old names of verbs and flags and their replacements, by verb where a name now means something else."""

RENAMED = {
    "--any-voxel": "--ignore-voxel-size",
    "--heat": "--detector-score",
    "--own-score": "--candidate-score",
    "--own-threshold": "--candidate-threshold",
    "--contrasts": "--augment-contrast",
    "--within": "--roi",
    "--most": "--max-candidates",
    "worth": "feature-benchmark",
    "feature-benchmark --most": "--max-cells",
    "--replace": "--overwrite",
    "detect --region": "--box",
    "refine apply --regions": "--count-by",
    "refine fit --model": "--head",
    "search --encoder": "--encoder-sha256",
    "serve --model": "NAME=MODEL beside the first MODEL",
    "leaderboard validate --board": "BOARD, the first argument,",
    "leaderboard submit --board": "BOARD, the first argument,",
}
