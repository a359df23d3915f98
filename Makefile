# Thin aliases: dev.py does the work, and says more with `python3 dev.py --help`.
#   make test ARGS="--fast -k claim"

.PHONY: setup demo test lint docs load
setup demo test lint docs load:
	@python3 dev.py $@ $(ARGS)
