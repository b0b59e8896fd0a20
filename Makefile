# Each target sets up what it needs; nothing has to be sourced. ARGS goes to the command behind a target.
SHELL := bash
RUN := scripts/with_env.sh
.DEFAULT_GOAL := help
.PHONY: setup demo demo-policy test lint bench clean help

setup: ## dependencies, build, env.sh; what is done stays done; ROLE=robot for a robot PC, without torch
	@ROLE=$(ROLE) scripts/setup.sh

demo: setup ## a trained policy works through ten scenes in closed loop: out/demo/; HEAD=fast for tokens
	@$(RUN) nora demo $(if $(HEAD),--head $(HEAD)) $(ARGS)

demo-policy: setup ## make that policy: demonstrations, data set, training, trials: out/demo_policy/; goes on where it stopped
	@$(RUN) scripts/demo_policy.sh

test: lint ## lint, types, and every test; ARGS="-k word" for some
	@$(RUN) python -m pytest $(ARGS)

lint: setup ## format, lint and types
	@$(RUN) ruff format --check .
	@$(RUN) ruff check .
	@$(RUN) mypy

bench: setup ## the quick benchmarks: tiny model, tokens, simulator, chain latency, DDS profile, recorder, bags
	@$(RUN) python benchmarks/model_latency.py --size tiny
	@$(RUN) python benchmarks/token_latency.py --size tiny
	@$(RUN) python benchmarks/fast_tokens.py $(if $(FAST),--fast $(FAST))
	@$(RUN) python benchmarks/repetition_penalty.py
	@$(RUN) python benchmarks/simulator_speed.py
	@$(RUN) python benchmarks/chain_latency.py
	@$(RUN) python benchmarks/dds_profile.py
	@$(RUN) python benchmarks/recorder_throughput.py
	@$(RUN) python benchmarks/bag_conversion.py
	@$(RUN) python benchmarks/sft_speed.py

clean: ## remove everything that set-up, build and runs have made
	rm -rf .venv build install log out env.sh .mypy_cache .pytest_cache .ruff_cache .hypothesis

help: ## this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20
