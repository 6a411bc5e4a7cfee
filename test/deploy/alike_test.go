package deploy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"turbotunnel/common/handshake"
	"turbotunnel/test/cdn"
	"turbotunnel/test/guide"
	"turbotunnel/test/programs"
)

// A face is what strangers see of a server: the server itself, or what a guide
// puts in front of it.
type face struct {
	name  string
	host  string // that strangers ask for
	start func(t *testing.T, origin string) (addr string)
}

var faces = []face{
	{"nginx", siteName, func(t *testing.T, origin string) string {
		listen, dir := programs.Addr(t), programs.Folder(t)
		guide.WriteCertificate(t, dir, siteName)
		startSite(t, dir, listen, nginxSite(t, dir, listen, origin))
		return listen
	}},
	{"haproxy of several servers", siteName, func(t *testing.T, origin string) string { return balanced(t, balancers[0], origin) }},
	{"nginx of several servers", siteName, func(t *testing.T, origin string) string { return balanced(t, balancers[1], origin) }},
	{"nginx as CDN", cdn.Origin, func(t *testing.T, origin string) string {
		return guide.StartCDN(t, guide.Nginx, cdn.Front, origin).Addr
	}},
	{"haproxy as CDN", cdn.Origin, func(t *testing.T, origin string) string {
		return guide.StartCDN(t, guide.Haproxy, cdn.Front, origin).Addr
	}},
}

func balanced(t *testing.T, b balancer, origin string) string {
	t.Helper()
	listen, dir := programs.Addr(t), programs.Folder(t)
	guide.WriteCertificate(t, dir, siteName)
	b.configure(t, dir, listen, []string{origin})
	b.start(t, dir, listen)
	return listen
}

// requests are what a stranger may send over HTTP/1, with PATH and HOST for
// what differs.
func requests() map[string]string {
	head := func(first string, lines ...string) string {
		lines = append([]string{first, "Host: HOST", "Connection: close"}, lines...)
		return strings.Join(lines, "\r\n") + "\r\n\r\n"
	}
	body := strings.Repeat("0123456789", 2000)
	chunks := "4e20\r\n" + body + "\r\n0\r\nX-Late: 1\r\n\r\n"
	long := strings.Repeat("a", 20_000)
	return map[string]string{
		"GET":                  head("GET PATH HTTP/1.1"),
		"HEAD":                 head("HEAD PATH HTTP/1.1"),
		"GET with a body":      head("GET PATH HTTP/1.1", "Content-Length: 200") + body[:200],
		"POST":                 head("POST PATH HTTP/1.1", "Content-Length: 200") + body[:200],
		"POST of nothing":      head("POST PATH HTTP/1.1", "Content-Length: 0"),
		"POST of much":         head("POST PATH HTTP/1.1", "Content-Length: 20000") + body,
		"POST without length":  head("POST PATH HTTP/1.1"),
		"POST of too much":     head("POST PATH HTTP/1.1", "Content-Length: 2000000") + body,
		"chunked":              head("POST PATH HTTP/1.1", "Transfer-Encoding: chunked", "Trailer: X-Late") + chunks,
		"bad chunks":           head("POST PATH HTTP/1.1", "Transfer-Encoding: chunked") + "xyz\r\n",
		"length and chunks":    head("POST PATH HTTP/1.1", "Transfer-Encoding: chunked", "Content-Length: 200") + chunks,
		"other encoding":       head("POST PATH HTTP/1.1", "Transfer-Encoding: gzip") + body[:200],
		"Expect":               head("POST PATH HTTP/1.1", "Content-Length: 200", "Expect: 100-continue") + body[:200],
		"odd Expect":           head("POST PATH HTTP/1.1", "Content-Length: 200", "Expect: 200-ok") + body[:200],
		"PUT":                  head("PUT PATH HTTP/1.1", "Content-Length: 200") + body[:200],
		"OPTIONS":              head("OPTIONS PATH HTTP/1.1"),
		"odd method":           head("FOO PATH HTTP/1.1"),
		"bad method":           head("F@O PATH HTTP/1.1"),
		"CONNECT":              head("CONNECT PATH HTTP/1.1"),
		"1.0":                  head("GET PATH HTTP/1.0"),
		"1.0 POST":             head("POST PATH HTTP/1.0", "Content-Length: 200") + body[:200],
		"1.0 without length":   head("POST PATH HTTP/1.0"),
		"0.9":                  "GET PATH\r\n\r\n",
		"other version":        head("GET PATH HTTP/9.9"),
		"request line":         head("GET PATH and more HTTP/1.1"),
		"header without colon": head("GET PATH HTTP/1.1", "junk"),
		"NUL in header":        head("GET PATH HTTP/1.1", "X-A: a\x00b"),
		"no host":              "GET PATH HTTP/1.1\r\nConnection: close\r\n\r\n",
		"two hosts":            head("GET PATH HTTP/1.1", "Host: other.example"),
		"bad length":           head("POST PATH HTTP/1.1", "Content-Length: -1"),
		"long query":           head("GET PATH?" + long + " HTTP/1.1"),
		"longer query":         head("GET PATH?" + long + long + " HTTP/1.1"),
		"long header":          head("GET PATH HTTP/1.1", "X-A: "+long),
		"longer header":        head("GET PATH HTTP/1.1", "X-A: "+long+long),
		"many headers":         head("GET PATH HTTP/1.1", strings.TrimSuffix(strings.Repeat("X-A: a\r\n", 500), "\r\n")),
		"Range":                head("GET PATH HTTP/1.1", "Range: bytes=0-1"),
		"of a browser":         head("GET PATH HTTP/1.1", "User-Agent: Mozilla/5.0 Chrome/120.0.0.0 Safari/537.36"),
		"path above the root":  head("GET PATH/../../../x HTTP/1.1"),
		"escaped path":         head("GET PATH%00 HTTP/1.1"),
	}
}

var dated = regexp.MustCompile(`(?m)^[Dd]ate: .*$`)

// connect connects with TLS, as this protocol wants it.
func connect(t *testing.T, addr, host, protocol string) net.Conn {
	t.Helper()
	c, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, ServerName: host, NextProtos: []string{protocol}})
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(programs.WaitLimit))
	return c
}

// answers is what comes for a request, up to the end of the answer or of the
// connection.
func answers(t *testing.T, addr, host, request string) string {
	t.Helper()
	c := connect(t, addr, host, "http/1.1")
	defer c.Close()
	_, _ = io.WriteString(c, request) // it may be refused before its end
	var all bytes.Buffer
	r := bufio.NewReader(io.TeeReader(c, &all))
	method, _, _ := strings.Cut(request, " ")
	for final := false; !final; {
		resp, err := http.ReadResponse(r, &http.Request{Method: method})
		if err != nil { // what came is not HTTP, or nothing is
			_, _ = io.Copy(io.Discard, r)
			break
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		final = resp.StatusCode >= http.StatusOK
	}
	return dated.ReplaceAllString(string(all.Bytes()[:all.Len()-r.Buffered()]), "Date:")
}

// answers2 is what comes for a request over HTTP/2.
func answers2(t *testing.T, addr, host, method, path, body string) string {
	t.Helper()
	tr := &http.Transport{
		DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
			return connect(t, addr, host, "h2"), nil
		},
		ForceAttemptHTTP2: true, DisableCompression: true,
		Protocols: new(http.Protocols),
	}
	tr.Protocols.SetHTTP2(true)
	defer tr.CloseIdleConnections()
	var content io.Reader
	if body != "" {
		content = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, "https://"+host+path, content)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	resp.Header.Del("Date")
	return fmt.Sprintf("%s %v %v %q %v %v", resp.Proto, resp.Status, resp.Header, text, resp.Trailer, err)
}

// compare asks for each of paths in all ways, and wants one answer.
func compare(t *testing.T, addr, host string, paths []string) {
	t.Helper()
	same := func(what string, answer func(path string) string) {
		t.Helper()
		want := answer(paths[0])
		for _, path := range paths[1:] {
			if got := answer(path); got != want {
				t.Errorf("%s: %s is answered\n%.2000s\nand %s\n%.2000s", what, path, got, paths[0], want)
			}
		}
	}
	for what, request := range requests() {
		same(what, func(path string) string {
			return answers(t, addr, host, strings.NewReplacer("PATH", path, "HOST", host).Replace(request))
		})
	}
	for method, body := range map[string]string{"GET": "", "HEAD": "", "POST": strings.Repeat("x", 200), "PUT": "x", "FOO": "", "DELETE": ""} {
		same(method+" over HTTP/2", func(path string) string { return answers2(t, addr, host, method, path, body) })
	}
	same("much over HTTP/2", func(path string) string {
		return answers2(t, addr, host, "POST", path, strings.Repeat("x", 20_000))
	})
}

// TestStrangersSeeOneSite: what a stranger is told of the tunnel's path, with
// names of sessions and without, is what he is told elsewhere, whatever he
// sends, whatever stands in front of the server, and whatever the server shows;
// and also while it is away.
func TestStrangersSeeOneSite(t *testing.T) {
	t.Parallel()
	root := programs.Folder(t)
	programs.Write(t, filepath.Join(root, "index.html"), "the site")
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		// Whether there is a length depends on when nginx has got the body.
		w.Header().Set("X-Seen", fmt.Sprint(r.Method, len(body), err))
		http.NotFound(w, r)
	}))
	t.Cleanup(other.Close)
	for _, f := range append([]face{{name: "server"}}, faces...) {
		decoys := map[string]string{"folder": root, "site": other.URL, "placeholder": ""}
		if f.host == cdn.Origin { // it is enough that it tells paths from one another
			decoys = map[string]string{"placeholder": ""}
		}
		for shown, decoy := range decoys {
			t.Run(strings.ReplaceAll(f.name, " ", "-")+"/"+shown, func(t *testing.T) {
				t.Parallel()
				seeOneSite(t, f, decoy)
			})
		}
	}
}

func seeOneSite(t *testing.T, f face, decoy string) {
	t.Helper()
	origin, state := programs.Addr(t), programs.Folder(t)
	flags := []string{"-trusted-proxies", "127.0.0.1", "-decoy", decoy}
	if f.start == nil {
		guide.WriteCertificate(t, state, siteName)
		flags = append(flags, "-tls-cert", filepath.Join(state, "cert.pem"), "-tls-key", filepath.Join(state, "key.pem"))
		f.host, f.start = siteName, func(*testing.T, string) string { return origin }
	}
	server := startServer(t, origin, state, programs.Addr(t), flags...)
	addr := f.start(t, origin)
	key, err := handshake.ParsePublicKey(programs.Key(t, state))
	if err != nil {
		t.Fatal(err)
	}
	right := handshake.NewID(key, handshake.DayOf(time.Now())).String()
	wrong := strings.Map(func(r rune) rune { return 'A' + (r+1)%26 }, right)
	paths := []string{"/other/x", "/updates/" + right, "/updates/" + wrong, "/updates/x"}
	compare(t, addr, f.host, paths)
	compare(t, addr, f.host, []string{"/nothing", "/updates"})
	compare(t, addr, f.host, []string{"/nothing/", "/updates/"})
	if f.name == "server" || decoy != "" {
		return
	}
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, method := range []string{"GET", "POST"} {
		want := answers2(t, addr, f.host, method, "/other/x", "")
		if got := answers2(t, addr, f.host, method, "/updates/"+right, ""); got != want || !strings.Contains(want, " 50") {
			t.Errorf("with the server away a session's path is answered %s, and elsewhere %s", got, want)
		}
	}
}

// nginxSite is the file of deploy-nginx.md for this machine.
func nginxSite(t *testing.T, dir, listen, origin string, pairs ...string) string {
	t.Helper()
	site := guide.Printed(t, "deploy-nginx.md", "/etc/nginx/sites-available/turbotunnel")
	return adaptSite(t, site, dir, listen, append([]string{
		"	listen [::]:443 ssl http2;\n", "", "127.0.0.1:8080", origin,
	}, pairs...)...)
}
