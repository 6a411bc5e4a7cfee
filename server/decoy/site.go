package decoy

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

const (
	// connectTimeout is how long the other site may take to accept a
	// connection, and siteTimeout how long an exchange with it may take until
	// its answer is here, or the first maxKept bytes of it (nginx:
	// proxy_connect_timeout and proxy_read_timeout, 60 s; less, since a probe
	// may wait for it).
	connectTimeout = 10 * time.Second
	siteTimeout    = 30 * time.Second

	// siteConns bounds the exchanges with the other site. A request takes one
	// when its body is here, and gives it back when the answer is. It waits for
	// one as long as siteQueue.
	siteConns = 64
	siteQueue = 10 * time.Second

	// maxKept is how many bytes of an answer are kept, so that who reads slowly
	// holds nothing of the site's. A longer one is passed on as it comes, for
	// longTimeout and maxAnswer bytes at most (nginx: proxy_max_temp_file_size,
	// 1 GB).
	maxKept     = 1 << 20
	longTimeout = 10 * time.Minute
	maxAnswer   = 1 << 30

	// siteComplaint is the least time between two log lines about a site that
	// fails: strangers decide how often it is asked.
	siteComplaint = time.Minute
)

var (
	errSlow = errors.New("the site takes too long")
	errLong = errors.New("the site's answer is too long")
)

// A site passes requests on to another one, which learns nothing of who asked.
// Requests and answers are kept in memory until they are complete, as nginx
// does, so that a slow stranger holds neither a connection to the site nor a
// place in front of it.
type site struct {
	target    *url.URL
	transport *http.Transport
	slots     chan struct{}
	room      *room
	log       *slog.Logger
	complaint rate.Sometimes
	refused   atomic.Int64 // requests that got no slot
}

func newSite(target *url.URL, log *slog.Logger) *Decoy {
	s := &site{
		target: target,
		transport: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: connectTimeout}).DialContext,
			TLSHandshakeTimeout: connectTimeout,
			IdleConnTimeout:     siteTimeout,
			MaxIdleConnsPerHost: siteConns,
			ForceAttemptHTTP2:   true,
			// The stranger's Accept-Encoding goes through, and so does the answer.
			DisableCompression: true,
		},
		slots:     make(chan struct{}, siteConns),
		room:      newRoom(roomSize, maxLong),
		log:       log,
		complaint: rate.Sometimes{Interval: siteComplaint},
	}
	return &Decoy{site: s, other: s, close: func() error {
		s.transport.CloseIdleConnections()
		return nil
	}}
}

// ServeHTTP answers r as the other site does.
func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	rc := http.NewResponseController(w)
	g := s.room.enter(func() {
		cancel(errNoRoom)
		past := time.Unix(1, 0)
		_ = rc.SetReadDeadline(past)
		_ = rc.SetWriteDeadline(past)
	})
	defer g.leave()
	body := &kept{guest: g}
	if status := receive(r, rc, body); status != 0 {
		refuse(w, r, status)
		return
	}
	if !s.enqueue(ctx) {
		errorPage(w, r, http.StatusServiceUnavailable)
		return
	}
	x := &exchange{site: s, guest: g, ctx: ctx, free: sync.OnceFunc(func() { <-s.slots })}
	defer x.free()
	x.timer = time.AfterFunc(siteTimeout, func() { cancel(errSlow) })
	defer x.timer.Stop()
	x.proxy().ServeHTTP(w, x.request(r, body))
}

// enqueue waits for one of the slots.
func (s *site) enqueue(ctx context.Context) bool {
	timer := time.NewTimer(siteQueue)
	defer timer.Stop()
	select {
	case s.slots <- struct{}{}:
		return true
	case <-timer.C:
		s.refused.Add(1)
	case <-ctx.Done():
	}
	return false
}

// An exchange is a request that has a slot.
type exchange struct {
	site  *site
	guest *guest
	ctx   context.Context
	free  func()      // gives the slot back
	timer *time.Timer // ends ctx
}

// request is r with a body that is here.
func (x *exchange) request(r *http.Request, body *kept) *http.Request {
	r = r.WithContext(x.ctx)
	if body.size > 0 {
		// A connection that the site has just closed is no reason to fail.
		r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(body.reader()), nil }
		r.Body, _ = r.GetBody()
	}
	return r
}

func (x *exchange) proxy() *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Transport:      x.site.transport,
		Rewrite:        x.rewrite,
		ModifyResponse: x.receive,
		ErrorHandler:   x.fail,
		ErrorLog:       slog.NewLogLogger(x.site.log.Handler(), slog.LevelDebug),
	}
}

func (x *exchange) rewrite(pr *httputil.ProxyRequest) {
	pr.SetURL(x.site.target)
	pr.Out.URL.RawQuery = pr.In.URL.RawQuery // as it came, where SetURL and its caller mend it
	// A connection that changed its protocol would have no bounds.
	pr.Out.Header.Del("Connection")
	pr.Out.Header.Del("Upgrade")
	pr.Out.Header.Del("Expect") // the body is here
}

// receive keeps the answer, or passes on one that is long.
func (x *exchange) receive(resp *http.Response) error {
	// Both would send the stranger to the other site itself.
	resp.Header.Del("Alt-Svc")
	if l := resp.Header.Get("Location"); l != "" {
		resp.Header.Set("Location", relocate(l, x.site.target))
	}
	if resp.Body == http.NoBody {
		return nil
	}
	from, answer := resp.Body, &kept{guest: x.guest}
	long := isLong(resp)
	if !long {
		n, err := io.Copy(answer, io.LimitReader(from, maxKept))
		if err != nil {
			return err
		}
		long = n == maxKept
	}
	all := answer.reader()
	if long {
		x.timer.Reset(longTimeout)
		x.guest.lengthen()
		all = io.MultiReader(all, from)
	} else {
		from.Close()
		x.timer.Stop()
		x.free()
	}
	resp.Body = &answerBody{Closer: from, from: all, left: maxAnswer, ctx: x.ctx}
	return nil
}

// isLong tells of an answer that shall not, or need not, be kept.
func isLong(resp *http.Response) bool {
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	return resp.ContentLength > maxKept || kind == "text/event-stream"
}

// answerBody ends with its guest, and at its bound.
type answerBody struct {
	io.Closer
	from io.Reader
	left int64
	ctx  context.Context
}

func (b *answerBody) Read(p []byte) (int, error) {
	if b.ctx.Err() != nil {
		return 0, context.Cause(b.ctx)
	}
	n, err := b.from.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errLong
	}
	return n, err
}

// fail answers in place of the site.
func (x *exchange) fail(w http.ResponseWriter, r *http.Request, err error) {
	x.timer.Stop()
	x.free()
	cause := context.Cause(x.ctx)
	status := http.StatusBadGateway
	switch {
	case errors.Is(cause, errNoRoom), errors.Is(err, errNoRoom):
		status = http.StatusServiceUnavailable
	case errors.Is(cause, errSlow), errors.Is(err, os.ErrDeadlineExceeded), isTimeout(err):
		status = http.StatusGatewayTimeout
	}
	// A stranger who went away is no failure of the site.
	if status != http.StatusServiceUnavailable && (x.ctx.Err() == nil || errors.Is(cause, errSlow)) {
		x.site.complaint.Do(func() {
			x.site.log.Warn("the decoy site does not answer: strangers see an error page",
				"status", status, "addr", x.site.target.Host, "err", err)
		})
	}
	clear(w.Header())
	errorPage(w, r, status)
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

// relocate makes a Location within target one within this server.
func relocate(location string, target *url.URL) string {
	base := target.Scheme + "://" + target.Host + strings.TrimSuffix(target.Path, "/")
	rest, ok := strings.CutPrefix(location, base)
	if !ok || rest != "" && rest[0] != '/' && rest[0] != '?' {
		return location
	}
	if !strings.HasPrefix(rest, "/") {
		rest = "/" + rest
	}
	return rest
}
