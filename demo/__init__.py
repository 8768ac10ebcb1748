"""The main job in front of one's eyes: `python -m demo` plays a small story on real services and checks every scene.

It uses the worker as anybody would, by its commands, topics, views and HTTP, and must never look behind them.
"""
