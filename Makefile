# `make demo` and `make test` work on a fresh Debian 12 or newer with git, make, a C compiler and Rust.
# Bootstrapping an image needs root: a user with sudo is asked for it.

SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
TARGET := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)

.PHONY: demo test setup

demo: ## Builds a golden image from a template, publishes it, and boots a VM from it.
	tools/setup
	cargo build --release --locked --bin tintype
	$(SUDO) $(TARGET)/release/tintype demo

test: ## Everything that CI checks; stages print their time.
	tools/setup --tests
	cargo xtask ci
