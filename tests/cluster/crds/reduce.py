"""Reduce files of custom resource definitions to what tests need: one version's schema, without descriptions.

python tests/cluster/crds/reduce.py FILE.yaml ...      # writes <plural>.json.xz beside this file
"""

import json
import lzma
import sys
from pathlib import Path

import yaml

STORED = {"ray.io": "v1", "kueue.x-k8s.io": "v1beta2"}


def reduced(part):
    """The same schema; `description` is a text in a schema, and a field of some object where its value is a schema."""
    if isinstance(part, dict):
        return {
            key: reduced(value) for key, value in part.items() if not (key == "description" and isinstance(value, str))
        }
    return [reduced(value) for value in part] if isinstance(part, list) else part


def main():
    for name in sys.argv[1:]:
        spec = yaml.load(Path(name).read_text(), yaml.CSafeLoader)["spec"]
        (version,) = [one for one in spec["versions"] if one["name"] == STORED[spec["group"]]]
        kept = {
            "kind": spec["names"]["kind"],
            "apiVersion": f"{spec['group']}/{version['name']}",
            "schema": reduced(version["schema"]["openAPIV3Schema"]),
        }
        text = json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()
        Path(__file__).with_name(f"{spec['names']['plural']}.json.xz").write_bytes(lzma.compress(text, preset=9))


if __name__ == "__main__":
    main()
