"""Classify images with a trained network, and write what it says as a table.

    python predict.py ckpt_path=RUN/best.ckpt images=PHOTO.jpg
    python predict.py ckpt_path=RUN/best.ckpt images=FOLDER                     # and below it
    python predict.py ckpt_path=RUN/best_compact/compact.pt images=FOLDER       # the cut network
    python predict.py ckpt_path=RUN/best.ckpt images=FOLDER csv=out.csv         # another table
    python predict.py ckpt_path=RUN/last.ckpt images=FOLDER                     # newest epoch

Images are resized and normalised as the data that the network was trained on. A row of the table
has the file, its class, the probability of that, and the probability of every class.
"""

import csv
import io
from pathlib import Path

from omegaconf import DictConfig

from sparsereg.commands import command_line
from sparsereg.commands.checks import check_settings
from sparsereg.commands.memory import importing
from sparsereg.commands.overrides import typed
from sparsereg.errors import UserError, printable
from sparsereg.files import check_checkpoint_file, write_atomically

SHOWN = 10  # images


def main(cfg: DictConfig) -> None:
    for key, what in (("ckpt_path", "a trained network"), ("images", "an image or a folder")):
        if cfg[key] is None:
            raise UserError(f"{key}=… is needed, {what}")
    check_settings(cfg, typed())
    check_checkpoint_file(cfg.ckpt_path)
    if not Path(cfg.csv).parent.is_dir():
        raise UserError(f"csv={cfg.csv}: there is no folder {Path(cfg.csv).parent}")
    with importing():  # takes seconds
        from sparsereg.predictions import predict

    predictions = predict(cfg.ckpt_path, cfg.images)
    for prediction in predictions[:SHOWN]:
        share = prediction.probabilities[prediction.name]
        print(printable(f"{prediction.file}: {prediction.name} ({share:.1%})"))
    classes, text = [*predictions[0].probabilities], io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["file", "class", "probability", *classes])
    for file, name, found in predictions:
        shares = [f"{found[key]:.6f}" for key in (name, *classes)]
        rows.writerow([file, name, *shares])
    write_atomically(Path(cfg.csv), text.getvalue())
    print(printable(f"wrote {cfg.csv}: {len(predictions)} image(s)"))


def cli() -> None:  # installed as sparsereg-predict
    command_line.run(main, "predict")


if __name__ == "__main__":
    cli()
