"""The command line (contract §5): words and tables around functions that live elsewhere.

Must never decide anything, nor import more than a command needs: `--help` answers in a blink.
"""
