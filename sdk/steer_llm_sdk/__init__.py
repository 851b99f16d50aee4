"""The name kept for Steer's in-process API, which is not part of this release.

Nothing can be imported from here yet. Until then run the sidecar (`steer serve`) and point the
provider SDK's base URL at it: the same policies, without a change to the application.
"""
