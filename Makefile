# make train   set up, then preprocess, pretrain, fine-tune and score DATASET (the built-in demo unless you say otherwise)
# make test    set up, then run every notebook and test
# make features  compute the features of pretrained encoders alone, as over night or on another machine (make features DATASET=mer23)
# make layers   which layer of an audio encoder says most about one's own clips (make layers DATASET=features P="-p data_dir FOLDER -p encoders small")
# make crossval | ablation | semisupervised | sweep | causes   folds and ensembles; what each part is worth; how many labels it takes; which values are best; why it learns (all resumable)
# make alignment | audit   a run's matrix, map and doubtful clips, as figures; how well doubtful clips are found in a data set with injected faults
# make benchmark STARTS=5   what reading and a step cost here, over five starts (P="-p parts step,bounds,loader -p threads 2")
# make soak    half an hour of training and predicting, to see that memory and file descriptors stay flat
# make lab     JupyterLab on this machine, with a token
# make notebooks  execute the book and keep what it shows
# make docs    the documentation site, into site/: open site/index.html, no server and no network needed
# Parameters of a notebook: make train DATASET=mer23 P="-p data_dir /data/mer23 -p epochs 40"

DATASET ?= demo
P ?=
N ?=
STARTS ?= 1
VENV := .venv
BIN := $(VENV)/bin
# the executed notebook lies beside its results, in the folder that P names (-p output_dir FOLDER, in quotes where it has blanks), if it names one
OUT := $(shell set -- $(P); out='runs/$(DATASET)'; while [ $$# -gt 2 ]; do [ "$$1 $$2" = '-p output_dir' ] && out=$$3; shift; done; printf %s "$$out")

.PHONY: setup train preprocess features layers results benchmark crossval ablation semisupervised sweep causes soak alignment audit test lab docs export notebooks readme figures clean

setup: $(VENV)/.ready

# uv resolves and installs in a minute and hard-links from one cache, so a second clone costs little disk; pip installs uv.
# Compiled once here, all later imports take half the time
$(VENV)/.ready: pyproject.toml
	test -x $(BIN)/python || python3 -m venv --without-pip $(VENV)
	test -x $(BIN)/uv || python3 -m pip --python $(BIN)/python install --quiet uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --editable '.[dev]'
	touch $@

train: setup
	mkdir -p "$(OUT)"
	$(BIN)/papermill nbs/train.ipynb "$(OUT)/train.ipynb" --kernel python3 -p dataset $(DATASET) $(P)
	$(BIN)/python -m vat_nb.runs.page "$(OUT)/train.ipynb"
	@echo "look at $(OUT)/train.html; scores are in $(OUT)/metrics.json"

preprocess features layers crossval ablation semisupervised sweep causes soak alignment audit: setup
	mkdir -p "$(OUT)"
	$(BIN)/papermill nbs/$@.ipynb "$(OUT)/$@.ipynb" --kernel python3 -p dataset $(DATASET) $(P)
	$(BIN)/python -m vat_nb.runs.page "$(OUT)/$@.ipynb"

# each start is a process of its own; benchmark.json keeps them all
benchmark: setup
	mkdir -p "$(OUT)"
	for start in $$(seq $(STARTS)); do $(BIN)/papermill nbs/$@.ipynb "$(OUT)/$@.ipynb" --kernel python3 -p dataset $(DATASET) $(P) || exit 1; done
	$(BIN)/python -m vat_nb.runs.page "$(OUT)/$@.ipynb"

# docs/results.md from the runs that are there, and those that were kept; and the table of the README
results: setup
	$(BIN)/python docs/studies.py
	test ! -f "$(OUT)/metrics.json" || PYTHONPATH=docs $(BIN)/python -c "from tables import results_table; import sys; print(results_table(sys.argv[1]))" "$(OUT)/metrics.json"

# two notebooks, then two files of tests at a time, one core each; where a process crashes, it says at which line
test: export OMP_NUM_THREADS = 1
test: export PYTHONFAULTHANDLER = 1
test: setup
	$(BIN)/ruff check .
	$(BIN)/nbdev-test --n-workers 2 --file-glob '[0-9]*.ipynb' --timing
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations 10 tests

# files of up to a gigabyte can be sent to a notebook (predict.ipynb); without the setting ten megabytes end the connection
lab: setup
	$(BIN)/jupyter lab --ip=127.0.0.1 --notebook-dir=. "--ServerApp.tornado_settings={'websocket_max_message_size': 1073741824}" $(if $(filter 0,$(shell id -u)),--allow-root) nbs/index.ipynb

# both variables only silence advertisements
docs: setup
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict --quiet
	@echo "look at site/index.html"

export: setup
	$(BIN)/nbdev-export
	$(BIN)/nbdev-clean

# executes the book (or one notebook: make notebooks N=07_model) and keeps what it shows; run notebooks show what runs/demo has of them
notebooks: setup
	$(BIN)/python docs/store_outputs.py $(N)
	$(BIN)/nbdev-clean

readme: setup
	$(BIN)/jupyter nbconvert --to markdown --log-level WARN --stdout nbs/index.ipynb | sed 's#\.\./##g' > README.md

# the figures in the README and in docs/; those of runs are copied where they are
figures: setup
	$(BIN)/python docs/draw.py
	for f in alignment attention fine-tuning robustness ablation semisupervised; do test ! -f runs/demo/figures/$$f.png || cp runs/demo/figures/$$f.png figures/; done
	test ! -f runs/lrwar/figures/alignment_matrices.png || cp runs/lrwar/figures/alignment_matrices.png figures/alignment_lrwar.png
	for f in scaling values; do test ! -f runs/demo/figures/benchmark_$$f.png || cp runs/demo/figures/benchmark_$$f.png figures/$$f.png; done

clean:
	rm -rf $(VENV) build site *.egg-info vat_nb/__pycache__ .pytest_cache .ruff_cache
