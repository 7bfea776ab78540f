"""Where the head lies: rigid registration of volumes, and their values at the region's voxels. Pure.

Once a session, :mod:`realtime.registration.session` finds how the session's reference volume lies to the
decoder's. For every volume, :mod:`realtime.registration.motion` finds how the head has moved since the
session's reference. :mod:`realtime.registration.resample` takes both joined and interpolates the volume once.

All positions are in mm, in scanner coordinates (RAS+, as NIfTI's affines give them). A transform is a matrix
[4, 4] that maps a position of the reference to where the same tissue lies in the volume. Results depend on
nothing but the arguments, to the last bit: sums are taken in numpy's own order and not by a threaded BLAS.
"""
