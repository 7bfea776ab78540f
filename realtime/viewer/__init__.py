"""The live page: WebRTC video with a data channel, a WebSocket where that fails.

server.py: routes, start and stop. access.py: where it listens and who may connect. connections.py: how many
may, and for how long. guard.py: the checks of every request. feed.py: the messages that one page has not had
yet. prometheus.py: metrics. peer.py, offer.py: one page's WebRTC connection. live.py: the newest picture as a
video track. open.py: opens the page in the user's browser. pictures.py: PNG and VP8 from arrays. static/: the
page, with uPlot for the latency trace.
"""
