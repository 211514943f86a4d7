"""Train and evaluate one experiment: `python run_expid.py --expid DeepFM_LLaCTR_movielens100k`."""

import sys

from fuxictr_llm.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
