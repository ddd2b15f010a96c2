"""The web page: leaderboards as static files that need neither server nor network."""

from benchsr.site.build import build_site, serve_site

__all__ = ["build_site", "serve_site"]
