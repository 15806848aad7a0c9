"""``python -m tools.emoji64 STAGE``: one command a stage of making the embedded base.

Stages in order: ``tokenizer``, ``vae``, ``freeze``, ``unet`` (and, at the same time if you like,
``decoder``), ``export``, ``quality``. Every training goes on from its own checkpoint under ``--work``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tools.emoji64 import export, pictures, quality, text, unet, vae
from tools.emoji64.loop import Plan

BASE = Path(__file__).parents[2] / "sdbuild" / "bases" / "emoji-64"


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.emoji64", description=__doc__)
    stages = parser.add_subparsers(dest="stage", required=True)
    trainings = {"vae": (3000, 16, 1.5e-3), "unet": (16000, 32, 1e-3), "decoder": (2150, 16, 1e-3)}
    for name in ("tokenizer", "vae", "freeze", "unet", "decoder", "export", "quality"):
        stage = stages.add_parser(name)
        stage.add_argument("--noto", type=Path, required=name != "export", help="folder of the Noto pictures")
        if name in ("vae", "decoder", "quality"):
            stage.add_argument("--fluent", type=Path, required=True, help="folder of the Fluent 3D pictures")
        if name == "quality":
            stage.add_argument("--base", type=Path, default=BASE, help="folder of the base to measure")
            stage.add_argument("--adapter", type=Path, help="file of the example's adapter, if it is there already")
            stage.add_argument("--sheet", type=Path, help="PNG for pairs of pictures and samples")
            continue
        stage.add_argument("--work", type=Path, required=True, help="folder for checkpoints and previews")
        if name in trainings:
            steps, batch, rate = trainings[name]
            stage.add_argument("--steps", type=int, default=steps)
            stage.add_argument("--batch", type=int, default=batch)
            stage.add_argument("--rate", type=float, default=rate)
            stage.add_argument("--device", default="cpu")
        if name == "export":
            stage.add_argument("--out", type=Path, default=BASE, help="folder of the finished base")
    return parser.parse_args()


def main() -> None:
    """Run one stage."""
    options = read_options()
    if options.stage == "quality":
        rows = quality.measure(
            options.base,
            noto=pictures.load(options.noto),
            fluent=pictures.load(options.fluent),
            adapter=options.adapter,
            sheet=options.sheet,
        )
        print(quality.table(rows))
        return
    work: Path = options.work
    frozen, vocabulary = work / "frozen", work / "tokenizer"
    if options.stage == "export":
        tokenizer = text.load_tokenizer(vocabulary)
        model, steps = unet.load_trained(work / "unet", tokenizer)
        pipe = export.pipeline(vae.load_frozen(frozen, work / "decoder"), model, tokenizer)
        print(f"{export.export(pipe, vocabulary, options.out)} bytes after {steps} steps of the UNet")
        return
    noto = pictures.load(options.noto)
    if options.stage == "tokenizer":
        text.make_tokenizer(noto, vocabulary)
        return
    if options.stage == "freeze":
        trained = vae.load_trained(work / "vae")
        vae.normalise(trained, noto.normalised(noto.indices(held_out=False)))
        trained.save_pretrained(frozen)
        return
    plan = Plan(steps=options.steps, batch=options.batch, rate=options.rate)
    if options.stage == "vae":
        vae.train_vae(
            noto=noto, fluent=pictures.load(options.fluent), folder=work / "vae", plan=plan, device=options.device
        )
    elif options.stage == "decoder":
        base = vae.load_frozen(frozen, work / "none")
        fluent = pictures.load(options.fluent)
        vae.train_decoder(vae=base, noto=noto, fluent=fluent, folder=work / "decoder", plan=plan)
    else:
        tokenizer = text.load_tokenizer(vocabulary)
        latents = unet.encode_all(vae.load_frozen(frozen, work / "none"), noto)
        unet.train_unet(
            noto=noto, latents=latents, tokenizer=tokenizer, folder=work / "unet", plan=plan, device=options.device
        )


if __name__ == "__main__":
    main()
