"""Servers of this test run's own: HTTPS with a self-made certificate and every fault a server has, and S3 (moto) with keys."""

import datetime
import http.server
import ipaddress
import re
import ssl
import threading
from collections import Counter
from contextlib import contextmanager

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def certificate(folder):
    """A key and a self-signed certificate for 127.0.0.1, as one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gristmill test")])
    day = datetime.timedelta(days=1)
    now = datetime.datetime.now(datetime.UTC)
    built = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
    built = built.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
    built = built.add_extension(x509.BasicConstraints(ca=True, path_length=0), True).sign(key, hashes.SHA256())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / "loopback.pem"
    path.write_bytes(pem + built.public_bytes(serialization.Encoding.PEM))
    return path


class Web:
    """`files` by name under every mode: https://127.0.0.1:PORT/MODE/NAME; `asked` counts requests by (mode, Range header or "")."""

    def __init__(self, url):
        self.url, self.files, self.asked, self.faults = url, {}, Counter(), Counter()


@contextmanager
def web_server(pem):
    """A `Web` whose modes are: ranges, whole (no ranges), unsized (whole, no length), drops (every first answer breaks in the middle), breaks (all
    do), busy (503 twice, then ranges), down (503 always), stingy (half of every range), nohead (HEAD is refused), moved, gone, secret, encoded
    (the stored gzip passed off as a content encoding), changing (another ETag each time), folder (a page of links)."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.answer(head=True)

        def do_GET(self):
            self.answer(head=False)

        def answer(self, head):
            mode, _, name = self.path.lstrip("/").partition("?")[0].partition("/")
            asked = self.headers.get("Range", "")
            web.asked[mode, asked] += 1
            refusal = {"gone": 404, "secret": 403, "down": 503}.get(mode) or (403 if mode == "nohead" and head else 0)
            if mode == "busy" and web.faults[name] < 2:
                web.faults[name] += 1
                refusal = 503
            if mode == "folder" and not name:
                return self.send(200, b"".join(b'<a href="%s">x</a>' % n.encode() for n in web.files), {"Content-Type": "text/html"}, head)
            if mode == "moved":
                return self.send(302, b"", {"Location": f"{web.url}/ranges/{name}"}, head)
            if refusal or name not in web.files:
                return self.send(refusal or 404, b"no", {}, head)
            data, fields = web.files[name], {"Content-Type": "application/octet-stream", "ETag": '"one"'}
            if mode == "changing":
                web.faults["etag"] += 1
                fields["ETag"] = f'"{web.faults["etag"]}"'
            if mode == "encoded":
                fields["Content-Encoding"] = "gzip"
            first, status = 0, 200
            if (wanted := re.fullmatch(r"bytes=(\d+)-(\d+)", asked)) and mode not in ("whole", "unsized", "breaks-whole", "drops-whole"):
                first, last = int(wanted[1]), min(int(wanted[2]), len(data) - 1)
                if mode == "stingy":
                    last = first + (last - first) // 2
                if first >= len(data):
                    return self.send(416, b"", {"Content-Range": f"bytes */{len(data)}"}, head)
                fields["Content-Range"], status = f"bytes {first}-{last}/{len(data)}", 206
                data = data[first : last + 1]
            broken = mode.startswith("breaks") or (mode.startswith("drops") and not web.faults.get((mode, name, asked)))
            if broken and len(data) > 1 and not head:
                web.faults[mode, name, asked] += 1
            self.send(status, data, fields, head, unsized=mode == "unsized", cut=broken and len(data) > 1)

        def send(self, status, data, fields, head, unsized=False, cut=False):
            self.send_response(status)
            for field, value in fields.items():
                self.send_header(field, value)
            if unsized:
                self.send_header("Connection", "close")
            else:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if not head:
                self.wfile.write(data[: len(data) // 2] if cut else data)
            if cut or unsized:
                self.close_connection = True

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_):  # clients that do not trust the certificate, or go before the body's end
            pass

    server = Server(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    web = Web(f"https://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def s3_server():
    """The address of an S3 service; requests without a key read public objects only."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()
