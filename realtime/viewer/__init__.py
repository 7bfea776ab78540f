"""The live page: WebRTC video with a data channel, a WebSocket where that fails.

server.py: routes, start and stop. access.py: where it listens and who may connect. guard.py: the checks of
every request. connections.py, pace.py: how many there may be, for how long, how often. feed.py: the messages
that one page has not had yet. prometheus.py: metrics. peer.py, offer.py: one page's WebRTC connection.
live.py: the newest picture as a video track. pictures.py: PNG and VP8 from arrays. open.py: opens the page in
the user's browser. static/: the page, with uPlot for the latency trace.
"""
