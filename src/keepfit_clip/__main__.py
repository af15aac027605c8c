"""`python -m keepfit_clip` is `keepfit-clip`: for torchrun and for machines whose PATH lacks the script."""

from keepfit_clip.cli import main

if __name__ == "__main__":
    main()
