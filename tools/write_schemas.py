"""Write config/schema/: the JSON Schemas that editors complete and check the YAML files of this tree with.

`make schema` does it, and writes the table of the launch files' arguments, which comes from the same models; tests fail
while they are not up to date. A YAML file names its schema in its first line,
`# yaml-language-server: $schema=../schema/contract.json`, which VS Code (YAML extension), Neovim and PyCharm read.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

from ki_common.configuration.schema import json_schema
from ki_policy_node.common.launch_arguments import FILE
from ki_policy_node.common.launch_table import table_text

FOLDER = Path(__file__).resolve().parent.parent / 'config' / 'schema'
# File -> the model that reads the YAML: module and class.
SCHEMAS = {
    'contract.json': ('ki_robot.contract.contract', 'Contract'),
    'run.json': ('training.train.config', 'Run'),
    'up.json': ('ki.stack.up_file', 'UpFile'),
}


def schemas() -> dict[str, str]:
    """The text of every schema, by file name."""
    texts = {}
    for file, (module, name) in SCHEMAS.items():
        schema = {
            '$schema': 'https://json-schema.org/draft/2020-12/schema',
            **json_schema(getattr(import_module(module), name)),
        }
        texts[file] = json.dumps(schema, indent=1, ensure_ascii=False) + '\n'
    return texts


def main() -> int:
    """Writes them all."""
    FOLDER.mkdir(exist_ok=True)
    for file, text in schemas().items():
        (FOLDER / file).write_text(text, encoding='utf-8')
        print(f'{FOLDER / file}')
    FILE.write_text(table_text(), encoding='utf-8')
    print(FILE)
    return 0


if __name__ == '__main__':
    sys.exit(main())
