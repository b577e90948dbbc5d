"""Google's protocol in front of moto's S3.

No emulator of Google Cloud Storage that pip or npm installs does what its XML interface is used for here: conditional
creates, lists, deletes, uploads in parts. The interface is S3's with other names for what conditions say, so these are
translated: `x-goog-if-generation-match: 0` is `If-None-Match: *`. What else differs is made so: an object that is not there
cannot be deleted, and conditions by S3's name mean nothing.
"""

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple
from werkzeug.test import run_wsgi_app
from werkzeug.wrappers import Response


class Google:
    def __init__(self, s3):
        self.s3 = s3

    def __call__(self, environ, start_response):
        for name in ("HTTP_IF_NONE_MATCH", "HTTP_IF_MATCH"):
            if environ["REQUEST_METHOD"] != "GET":
                environ.pop(name, None)
        generation = environ.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", None)
        if generation == "0":
            environ["HTTP_IF_NONE_MATCH"] = "*"
        elif generation is not None:
            return Response("another generation than 0", status=501)(environ, start_response)
        if environ["REQUEST_METHOD"] == "DELETE" and not environ["QUERY_STRING"] and self.is_missing(environ):
            return Response("NoSuchKey", status=404)(environ, start_response)
        return self.s3(environ, start_response)

    def is_missing(self, environ):
        head = {**environ, "REQUEST_METHOD": "HEAD"}
        _, status, _ = run_wsgi_app(self.s3, head)
        return status.startswith("404")


run_simple(
    "127.0.0.1",
    0,
    Google(DomainDispatcherApplication(create_backend_app)),
    threaded=True,
    request_handler=MotoRequestHandler,
)
