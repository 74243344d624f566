"""Where bytes lie: files on a disk or an object store, and committed artefacts made of them."""
