"""The live page, served on 127.0.0.1: WebRTC video with a data channel, a WebSocket where that fails.

server.py: routes, start and stop. guard.py: who may talk to it. feed.py: what one page has yet to be told.
peer.py, offer.py: one page's WebRTC connection. live.py: the newest picture as a video track.
pictures.py: PNG and VP8 from arrays. static/: the page, with uPlot for the latency trace.
"""

from realtime.viewer.server import Viewer

__all__ = ["Viewer"]
