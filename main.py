"""Train, evaluate or apply Mask DINO: `python main.py --help`. The same as the installed command `maskdino`."""

from maskdino_jax.cli import run

if __name__ == "__main__":
    run()
