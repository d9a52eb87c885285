# The commands of a working day. `make demo` and `make test` are all that a fresh machine needs: what uses .venv makes it
# first where it is missing, or brings it up to date.
#
#   make setup                 only that; PYTHON=python3.12 chooses another Python,
#                              ACCELERATOR=gpu the CUDA build of ONNX Runtime and TensorRT
#   make demo                  ten instructions on the simulated robot through the whole stack: out/demo/report.html
#                              ARGS="--bundle B" a policy of yours; see `ki demo --help`
#   make test | check | bench  what must pass | what must be tidy | the numbers of BENCHMARKS.md
#   make docs                  site/index.html: tutorials, how-tos, reference, design
#   make schema                config/schema/: what editors complete and check robot, run and `ki up` files with;
#                              and the table of launch arguments
#   make ws                    ros2_ws/install, as `colcon build` makes it on a robot
#   make lock                  choose the pinned versions anew (needs uv)

PYTHON ?= python3
ACCELERATOR ?=
BIN := .venv/bin
# On a machine with a sourced ROS 2, ki_msgs lives in the workspace that `make setup` built with it.
OVERLAY := if [ -n "$$ROS_DISTRO" ] && [ -f ros2_ws/install/local_setup.sh ]; then . ros2_ws/install/local_setup.sh; fi

# Bytecode is written also where the shell says not to: workers and node processes would each compile everything again.
.PHONY: setup ready demo test check bench docs schema ws lock clean

setup:
	@$(PYTHON) tools/setup_env.py $(if $(ACCELERATOR),--accelerator $(ACCELERATOR))

ready:
	@$(PYTHON) tools/setup_env.py --if-stale

demo: ready
	@$(OVERLAY); $(BIN)/ki demo $(ARGS)

test: ready
	@$(OVERLAY); PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto $(ARGS)

check: ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/python -m pytest -q tests/test_import_directions.py tests/tools/test_write_schemas.py
	@$(MAKE) --no-print-directory docs

bench: ready
	@$(OVERLAY); for program in benchmarks/*.py; do echo "== $$program"; $(BIN)/python $$program || exit 1; done

docs: ready
	@$(OVERLAY); NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/python -m mkdocs build --strict --quiet && echo 'open site/index.html'

schema: ready
	@PYTHONPATH=. $(BIN)/python tools/write_schemas.py

ws:
	@$(PYTHON) tools/build_ws.py

lock:
	uv pip compile setup.py --universal --python-version 3.10 --no-annotate --no-emit-index-url \
	  $(foreach extra,cpu export sim train space checkpoints serve ray console security docs ros dev,--extra $(extra)) --custom-compile-command 'make lock' --output-file constraints.txt

clean:
	rm -rf build install log site ros2_ws/build ros2_ws/install ros2_ws/log *.egg-info .mypy_cache .pytest_cache .ruff_cache
