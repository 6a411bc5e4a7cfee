package carrier

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"turbotunnel/common/handshake"
	"turbotunnel/common/wire"
)

// A network is the way from a client to a server: in memory, in the time of a
// synctest bubble, and as bad as a test wants it. It implements Transport.
type network struct {
	t       *testing.T
	trace   *trace
	handled sync.WaitGroup // requests that the server is at

	mu       sync.Mutex
	server   *Server // guarded by mu, like what follows
	fate     func(r *request) fate
	feeds    bool                          // requests may be written bit by bit
	ways     []*wayUp                      // of those that were
	slots    chan struct{}                 // one for each exchange that can be under way; nil: 100
	refuse   func(*request) *http.Response // answers what finds no slot; nil: it waits. Guarded by mu
	requests int                           // so far
	foreign  int                           // answers of status 200 that were not the server's, as the client says
	rest     time.Time                     // until then nobody is welcome
	open     map[*request]bool
	most     int                     // in flight at once so far
	firsts   map[string][]byte       // bodies that carry no unit, by path
	paused   map[chan *answer]string // for swap
	old      []*answer               // complete ones, for replay
	random   *rand.Rand
}

// A request is one exchange as the network sees it.
type request struct {
	*http.Request
	number int // from 0
	body   []byte
	cut    context.CancelCauseFunc // breaks the connection under it
}

// A fate is what the network does to an exchange. The zero value is a good
// network without delay.
type fate struct {
	there time.Duration // the request's way
	back  time.Duration // the answer's way

	refuse      bool // the request fails on its way
	vanish      bool // it is never heard of again
	loseAnswer  bool // the request arrives, the connection breaks then
	cutRequest  bool // only the beginning of the body arrives, and the connection breaks
	cutAnswer   bool // only the beginning of the answer's body does
	cutAt       int  // how much of it
	silentCut   bool // of the rest nothing is heard
	again       bool // the request arrives a second time
	after       time.Duration
	second      bool                          // it is the second copy's answer that comes back
	buffered    bool                          // the answer comes when it is complete
	largest     int                           // of a buffered answer that is larger, a status is made; 0: of none
	status      int                           // that; 0: it is never heard of again
	swapped     bool                          // the answer is another exchange's
	stale       bool                          // the answer is an old one
	instead     func(*request) *http.Response // somebody else answers
	readHeaders bool                          // and the body is not read

	// Of a request whose body has no length:
	collected bool        // the server gets it when it is complete
	above     int64       // with more bytes than this, something else happens; 0: nothing
	large     func(*fate) // what that is
}

var (
	errReset   = errors.New("connection reset")
	errRefused = errors.New("connection refused")
)

func newNetwork(t *testing.T, server *Server) *network {
	return &network{
		t:      t,
		trace:  newTrace(t),
		server: server,
		open:   make(map[*request]bool),
		firsts: make(map[string][]byte),
		paused: make(map[chan *answer]string),
		random: rand.New(rand.NewPCG(1, 2)),
	}
}

// set changes what the network does to the exchanges from now on.
func (n *network) set(f func(r *request) fate) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fate = f
}

// always is a fate for every exchange.
func always(f fate) func(*request) fate { return func(*request) fate { return f } }

// chance tells whether something of probability p happens. mu is held.
func (n *network) chance(p float64) bool { return n.random.Float64() < p }

// count is how many requests were made so far.
func (n *network) count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.requests
}

// atOnce is how many exchanges were under way at once at most.
func (n *network) atOnce() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.most
}

// connect changes the server.
func (n *network) connect(s *Server) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.server = s
}

// cutAll breaks the connections of all exchanges that are under way.
func (n *network) cutAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for r := range n.open {
		r.cut(errReset)
	}
}

func (n *network) Slots() (most int, crowded bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.slots != nil {
		return cap(n.slots), cap(n.slots) == 1
	}
	return 100, false
}

func (n *network) Name() string { return "" }

// Feeds says that requests may be written bit by bit if the test wants that.
func (n *network) Feeds() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.feeds
}

// Rest is what the last answer with a Retry-After has asked for.
func (n *network) Rest() time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return max(0, time.Until(n.rest))
}

func (n *network) Foreign(*http.Response) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.foreign++
}

// atMost lets so many exchanges be under way at once. More wait.
func (n *network) atMost(inFlight int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.slots = make(chan struct{}, inFlight)
}

// refuseMore has somebody else answer what would wait for a slot.
func (n *network) refuseMore(answer func(*request) *http.Response) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.refuse = answer
}

func (n *network) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cut := context.WithCancelCause(req.Context())
	r := &request{Request: req, cut: cut}
	n.mu.Lock()
	r.number = n.requests
	n.requests++
	slots, refuse := n.slots, n.refuse
	n.mu.Unlock()
	if slots != nil && refuse != nil {
		select {
		case slots <- struct{}{}:
			context.AfterFunc(ctx, func() { <-slots })
		default:
			return refuse(r), nil
		}
	} else if slots != nil {
		select {
		case slots <- struct{}{}:
			context.AfterFunc(ctx, func() { <-slots })
		case <-ctx.Done():
			cut(nil)
			return nil, context.Cause(ctx)
		}
	}

	// The fate may depend on the body, which is read when the connection is
	// ready; a test that wants it unread says so by the request's number.
	n.mu.Lock()
	fateOf := n.fate
	n.mu.Unlock()
	var f fate
	if fateOf != nil {
		n.mu.Lock()
		f = fateOf(r)
		n.mu.Unlock()
	}
	if req.ContentLength < 0 {
		return n.feed(ctx, r, f)
	}
	if !f.readHeaders {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			cut(nil)
			return nil, err
		}
		if int64(len(body)) != req.ContentLength {
			n.t.Errorf("a body of %d bytes with a Content-Length of %d", len(body), req.ContentLength)
		}
		r.body = body
		n.mu.Lock()
		server := n.server
		n.mu.Unlock()
		n.trace.request(server, r)
	}
	req.Body.Close()

	n.mu.Lock()
	n.open[r] = true
	n.most = max(n.most, len(n.open))
	n.mu.Unlock()
	resp, err := n.exchange(ctx, r, f)
	if err != nil {
		n.forget(r)
		return nil, err
	}
	resp.Body = &closer{resp.Body, func() { n.forget(r) }}
	return resp, nil
}

func (n *network) forget(r *request) {
	r.cut(net.ErrClosed)
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.open, r)
}

type closer struct {
	io.ReadCloser
	closed func()
}

func (c *closer) Close() error {
	c.closed()
	return c.ReadCloser.Close()
}

func (n *network) exchange(ctx context.Context, r *request, f fate) (*http.Response, error) {
	if !sleep(ctx, f.there) {
		return nil, context.Cause(ctx)
	}
	switch {
	case f.refuse:
		return nil, errRefused
	case f.vanish:
		<-ctx.Done()
		return nil, context.Cause(ctx)
	case f.instead != nil:
		resp := f.instead(r)
		if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil {
			n.mu.Lock()
			n.rest = time.Now().Add(time.Duration(s) * time.Second)
			n.mu.Unlock()
		}
		if !sleep(ctx, f.back) {
			return nil, context.Cause(ctx)
		}
		return resp, nil
	}
	a := n.deliver(ctx, r, f)
	if f.again {
		if f.second {
			if !sleep(ctx, f.after) {
				return nil, context.Cause(ctx)
			}
			a.discard()
			a = n.deliver(ctx, r, f)
		} else {
			// What the second copy is answered goes nowhere.
			n.handled.Go(func() {
				if sleep(ctx, f.after) {
					n.deliver(ctx, r, f)
				}
			})
		}
	}
	if f.loseAnswer || f.cutRequest {
		sleep(ctx, f.back)
		a.discard()
		return nil, errReset
	}
	select {
	case <-a.began:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if f.largest > 0 {
		<-a.ended
		a.mu.Lock()
		size := len(a.all)
		a.mu.Unlock()
		if size > f.largest {
			a.discard()
			if f.status == 0 {
				<-ctx.Done()
				return nil, context.Cause(ctx)
			}
			return page(f.status)(r), nil
		}
	}
	if f.swapped || f.stale {
		<-a.ended
		if f.swapped {
			a = n.swap(ctx, a, path.Base(r.URL.Path))
		} else if old := n.oldOne(); old != nil {
			a = old
		}
	}
	if !sleep(ctx, f.back) {
		return nil, context.Cause(ctx)
	}
	return a.response(ctx, f), nil
}

// deliver gives a request to the server.
func (n *network) deliver(ctx context.Context, r *request, f fate) *answer {
	body := r.body
	var end error = io.EOF
	if f.cutRequest {
		body, end = body[:min(f.cutAt, len(body))], io.ErrUnexpectedEOF
	}
	return n.hand(ctx, r, f, io.MultiReader(bytes.NewReader(body), failing{end}))
}

// hand gives a request with this body to the server.
func (n *network) hand(ctx context.Context, r *request, f fate, body io.Reader) *answer {
	n.mu.Lock()
	server := n.server
	n.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	a := &answer{
		header: make(http.Header),
		began:  make(chan struct{}),
		ended:  make(chan struct{}),
		news:   make(chan struct{}, 1),
		ctx:    ctx,
		cancel: cancel,
		hold:   f.buffered || f.swapped || f.stale,
	}
	req := r.Request.Clone(ctx)
	req.Body = io.NopCloser(body)
	req.RemoteAddr = "192.0.2.1:1234"
	n.handled.Go(func() {
		server.ServeHTTP(a, req)
		a.finish(n.t)
		cancel(context.Canceled)
		n.trace.answer(server, r, a)
		n.mu.Lock()
		defer n.mu.Unlock()
		n.old = append(n.old, a)
	})
	return a
}

// feed makes an exchange whose body is written bit by bit.
func (n *network) feed(ctx context.Context, r *request, f fate) (*http.Response, error) {
	n.mu.Lock()
	server := n.server
	n.open[r] = true
	n.most = max(n.most, len(n.open))
	n.mu.Unlock()
	way := &wayUp{ctx: ctx, there: f.there, news: make(chan struct{}, 1), collected: f.collected}
	n.mu.Lock()
	n.ways = append(n.ways, way)
	n.mu.Unlock()
	type outcome struct {
		resp *http.Response
		err  error
	}
	met := make(chan outcome, 1) // what happened before an answer
	aborted := make(chan struct{})
	var a *answer
	began := make(chan struct{}) // never, if it vanishes
	if !f.vanish && !f.refuse && f.instead == nil && !f.readHeaders {
		a = n.hand(ctx, r, f, way)
		began = a.began
	}
	n.handled.Go(func() {
		defer r.Request.Body.Close()
		if f.refuse || f.instead != nil || f.readHeaders {
			resp, err := n.exchange(ctx, r, f)
			met <- outcome{resp, err}
			return
		}
		whole, err := n.carry(r, &f, way)
		sent := *r // the server may have answered what r is
		sent.body = whole
		n.trace.request(server, &sent)
		switch {
		case f.refuse || f.instead != nil:
			close(aborted)
			a.discard()
			way.put(nil, errReset)
			resp, err := n.exchange(ctx, r, f)
			met <- outcome{resp, err}
		case f.cutRequest && errors.Is(err, io.ErrUnexpectedEOF):
			sleep(ctx, f.there+f.back)
			met <- outcome{nil, errReset}
		case f.again && err == io.EOF && sleep(ctx, f.after):
			n.deliver(ctx, &sent, f)
		}
	})
	var resp *http.Response
	var err error
	select {
	case o := <-met:
		resp, err = o.resp, o.err
	case <-began:
		if isClosed(aborted) {
			o := <-met
			resp, err = o.resp, o.err
		} else if err = errReset; !f.loseAnswer && sleep(ctx, f.back) {
			resp, err = a.response(ctx, f), nil
		}
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		n.forget(r)
		return nil, err
	}
	resp.Body = &closer{resp.Body, func() { n.forget(r) }}
	return resp, nil
}

// collect has the server get the requests that are under way, or others no more, when
// they are complete.
func (n *network) collect(yes bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, w := range n.ways {
		w.mu.Lock()
		w.collected = yes
		w.mu.Unlock()
	}
}

// carry puts what a body says on its way, as far as f lets it, and returns that and
// why it has ended.
func (n *network) carry(r *request, f *fate, way *wayUp) (whole []byte, err error) {
	buf := make([]byte, 16<<10)
	for err == nil {
		var k int
		k, err = r.Request.Body.Read(buf)
		if f.cutRequest && len(whole)+k >= f.cutAt {
			k, err = f.cutAt-len(whole), io.ErrUnexpectedEOF
		}
		whole = append(whole, buf[:k]...)
		if f.above > 0 && int64(len(whole)) > f.above {
			f.above = 0
			if f.large(f); f.refuse || f.instead != nil {
				return whole, errReset
			}
		}
		if !f.vanish {
			way.put(bytes.Clone(buf[:k]), err)
		}
	}
	return whole, err
}

// A wayUp is the body of a request as the server reads it.
type wayUp struct {
	ctx       context.Context
	there     time.Duration
	news      chan struct{}
	collected bool

	mu     sync.Mutex
	chunks []chunk // guarded by mu, like what follows
	end    error
}

func (w *wayUp) put(b []byte, end error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.chunks = append(w.chunks, chunk{time.Now().Add(w.there), b})
	w.end = end
	signal(w.news)
}

func (w *wayUp) Read(p []byte) (int, error) {
	for {
		n, at, end := w.next(p)
		switch {
		case w.ctx.Err() != nil:
			return 0, context.Cause(w.ctx)
		case n > 0:
			return n, nil
		case !at.IsZero():
			sleep(w.ctx, time.Until(at))
		case end != nil:
			return 0, end
		default:
			select {
			case <-w.news:
			case <-w.ctx.Done():
			}
		}
	}
}

// next copies what has arrived, or says when there will be something.
func (w *wayUp) next(p []byte) (n int, at time.Time, end error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.chunks) > 0 && (w.end != nil || !w.collected) {
		c, at := &w.chunks[0], w.chunks[0].at
		if w.collected {
			at = w.chunks[len(w.chunks)-1].at
		}
		if time.Now().Before(at) {
			return 0, at, nil
		}
		if n = copy(p, c.b); n > 0 {
			c.b = c.b[n:]
			return n, time.Time{}, nil
		}
		w.chunks = w.chunks[1:]
	}
	return 0, at, w.end
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// swap gives the answer to another exchange that waits to be swapped, and
// returns that one's, or its own if there is none for a second.
func (n *network) swap(ctx context.Context, a *answer, id string) *answer {
	n.mu.Lock()
	for c := range n.paused {
		delete(n.paused, c)
		n.mu.Unlock()
		other := <-c
		c <- a
		return other
	}
	c := make(chan *answer)
	n.paused[c] = id
	n.mu.Unlock()
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	select {
	case c <- a:
		return <-c
	case <-timer.C:
	case <-ctx.Done():
	}
	n.mu.Lock()
	_, waits := n.paused[c]
	delete(n.paused, c)
	n.mu.Unlock()
	if !waits {
		c <- a
		return <-c
	}
	return a
}

func (n *network) oldOne() *answer {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.old) == 0 {
		return nil
	}
	return n.old[n.random.IntN(len(n.old))]
}

// sleep tells whether ctx did not end meanwhile.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// An answer is the server's half of one delivered request. It implements
// http.ResponseWriter as far as http.ResponseController asks for it.
type answer struct {
	header http.Header
	ctx    context.Context // ends with the connection
	cancel context.CancelCauseFunc
	hold   bool          // nothing is seen before the end
	began  chan struct{} // closed when the head is out
	ended  chan struct{}
	news   chan struct{} // holds a token when there are more bytes

	mu     sync.Mutex
	status int
	sent   http.Header // the header when it was sent
	held   []byte      // not flushed
	chunks []chunk
	all    []byte
	done   bool
}

type chunk struct {
	at time.Time
	b  []byte
}

func (a *answer) Header() http.Header { return a.header }

func (a *answer) WriteHeader(status int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.status == 0 {
		a.status, a.sent = status, a.header.Clone()
	}
}

func (a *answer) Write(p []byte) (int, error) {
	a.WriteHeader(http.StatusOK)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ctx.Err() != nil {
		return 0, context.Cause(a.ctx)
	}
	a.held = append(a.held, p...)
	a.all = append(a.all, p...)
	if len(a.held) > 4096 && !a.hold { // as net/http's buffer
		a.flush()
	}
	return len(p), nil
}

// flush sends what was written. mu is held.
func (a *answer) flush() {
	if len(a.held) > 0 {
		a.chunks = append(a.chunks, chunk{time.Now(), a.held})
		a.held = nil
	}
	if !isClosed(a.began) {
		close(a.began)
	}
	signal(a.news)
}

func (a *answer) FlushError() error {
	a.WriteHeader(http.StatusOK)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ctx.Err() != nil {
		return context.Cause(a.ctx)
	}
	if !a.hold {
		a.flush()
	}
	return nil
}

func (a *answer) SetReadDeadline(time.Time) error { return nil }

func (a *answer) finish(t *testing.T) {
	a.WriteHeader(http.StatusOK)
	a.mu.Lock()
	defer a.mu.Unlock()
	if s := a.sent.Get("Content-Length"); s != "" && s != strconv.Itoa(len(a.all)) && a.ctx.Err() == nil {
		t.Errorf("an answer of %d bytes with a Content-Length of %s", len(a.all), s)
	}
	a.done = true
	a.flush()
	close(a.ended)
}

func (a *answer) discard() { a.cancel(errReset) }

func (a *answer) response(ctx context.Context, f fate) *http.Response {
	a.mu.Lock()
	defer a.mu.Unlock()
	length := int64(-1)
	if s := a.sent.Get("Content-Length"); s != "" {
		length, _ = strconv.ParseInt(s, 10, 64)
	}
	return &http.Response{
		StatusCode:    a.status,
		Header:        a.sent.Clone(),
		ContentLength: length,
		Body:          &answerReader{answer: a, ctx: ctx, fate: f},
	}
}

// answerReader is an answer's body as the client reads it.
type answerReader struct {
	*answer
	ctx   context.Context
	fate  fate
	chunk int // the next one
	part  []byte
	read  int
}

func (r *answerReader) Read(p []byte) (int, error) {
	for {
		if r.ctx.Err() != nil {
			return 0, context.Cause(r.ctx)
		}
		if r.fate.cutAnswer && r.read >= r.fate.cutAt {
			if r.fate.silentCut {
				<-r.ctx.Done()
				continue
			}
			r.discard()
			return 0, io.ErrUnexpectedEOF
		}
		if len(r.part) > 0 {
			if r.fate.cutAnswer {
				p = p[:min(len(p), r.fate.cutAt-r.read)]
			}
			n := copy(p, r.part)
			r.part = r.part[n:]
			r.read += n
			return n, nil
		}
		r.mu.Lock()
		more, done := r.chunk < len(r.chunks), r.done
		var c chunk
		if more {
			c = r.chunks[r.chunk]
			r.chunk++
		}
		r.mu.Unlock()
		switch {
		case more:
			sleep(r.ctx, time.Until(c.at.Add(r.fate.back)))
			r.part = c.b
		case done:
			if r.answer.ctx.Err() != nil && context.Cause(r.answer.ctx) != context.Canceled {
				return 0, errReset
			}
			return 0, io.EOF
		default:
			select {
			case <-r.news:
			case <-r.ctx.Done():
			}
		}
	}
}

func (r *answerReader) Close() error {
	r.discard()
	return nil
}

// A trace opens everything that is sealed and sent, and fails the test when a
// number was used for two plaintexts, or a first message or the answer to it
// is not always the same.
type trace struct {
	t *testing.T

	mu       sync.Mutex
	sessions map[string]*Session
	units    map[unitName][sha256.Size]byte
	messages map[string][]byte // first ones, and under "answer ID" second ones
}

type unitName struct {
	id     string
	up     bool
	kind   wire.Kind
	number uint64
}

func newTrace(t *testing.T) *trace {
	return &trace{
		t:        t,
		sessions: make(map[string]*Session),
		units:    make(map[unitName][sha256.Size]byte),
		messages: make(map[string][]byte),
	}
}

// session finds the session of a request, which may have ended meanwhile. mu
// is held.
func (tr *trace) session(server *Server, r *request) (string, *Session) {
	id := path.Base(r.URL.Path)
	if tr.sessions[id] == nil && server != nil {
		if parsed, err := handshake.ParseID(id); err == nil {
			server.mu.Lock()
			if s := server.sessions.byID[parsed]; s != nil {
				tr.sessions[id] = s
			}
			server.mu.Unlock()
		}
	}
	return id, tr.sessions[id]
}

func (tr *trace) request(server *Server, r *request) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	id, s := tr.session(server, r)
	if s != nil && tr.open(unitName{id: id, up: true}, s.link.receive, r.body) > 0 || r.ContentLength < 0 {
		return
	}
	tr.same("message 1 of "+id, r.body)
}

// same fails the test if what is called name was something else before.
func (tr *trace) same(name string, b []byte) {
	if before, ok := tr.messages[name]; ok && !bytes.Equal(before, b) {
		tr.t.Errorf("%s was repeated with other bytes", name)
	}
	tr.messages[name] = bytes.Clone(b)
}

func (tr *trace) answer(server *Server, r *request, a *answer) {
	a.mu.Lock()
	body := a.all
	a.mu.Unlock()
	tr.mu.Lock()
	defer tr.mu.Unlock()
	id, s := tr.session(server, r)
	if s == nil {
		return
	}
	if bytes.Equal(r.body, tr.messages["message 1 of "+id]) && bytes.HasPrefix(body, s.answer) {
		body = body[len(s.answer):]
	}
	tr.open(unitName{id: id}, s.link.send, body)
}

// open notes the units of a body and returns how many it has.
func (tr *trace) open(name unitName, key *wire.Key, body []byte) int {
	buf := make([]byte, wire.BufferSize)
	r := bytes.NewReader(body)
	for n := 0; ; n++ {
		u, err := key.Next(r, buf)
		if err != nil {
			return n
		}
		name.kind, name.number = u.Kind, u.Number
		sum := sha256.Sum256(u.Payload)
		if before, ok := tr.units[name]; ok && before != sum {
			tr.t.Errorf("number %d of kind %d was used for two plaintexts (from the client: %v)", u.Number, u.Kind, name.up)
		}
		tr.units[name] = sum
	}
}

// page is an answer by somebody else.
func page(status int, header ...string) func(*request) *http.Response {
	return func(*request) *http.Response {
		h := http.Header{"Content-Type": {"text/html"}}
		for i := 0; i+1 < len(header); i += 2 {
			h.Set(header[i], header[i+1])
		}
		const text = "<!doctype html><title>Hello</title><p>Nothing to see here."
		return &http.Response{StatusCode: status, Header: h, ContentLength: int64(len(text)), Body: io.NopCloser(strings.NewReader(text))}
	}
}

// A world is a server, a client and the network between them.
type world struct {
	t        *testing.T
	key      handshake.PrivateKey
	server   *Server
	net      *network
	accepted chan *Session

	mu     sync.Mutex
	remote []*Session
	local  []*Client
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, key: handshake.GenerateKey(), accepted: make(chan *Session, 1024)}
	w.server = NewServer(w.config())
	w.net = newNetwork(t, w.server)
	return w
}

// restart puts another server in the place of the one that there is.
func (w *world) restart(most limits) {
	w.server.Close()
	w.server = newServer(w.config(), most)
	w.net.connect(w.server)
}

func (w *world) config() ServerConfig {
	return ServerConfig{
		Key:     w.key,
		Decoy:   http.HandlerFunc(decoy),
		Engines: []string{"raw", "other"},
		Log:     testLog(w.t),
		Serve: func(s *Session) {
			w.mu.Lock()
			w.remote = append(w.remote, s)
			w.mu.Unlock()
			w.accepted <- s
			<-s.link.closed
		},
	}
}

func decoy(rw http.ResponseWriter, r *http.Request) {
	rw.Header().Set("Content-Type", "text/html")
	rw.Header().Set("X-Of", "the decoy")
	rw.WriteHeader(http.StatusNotFound)
	io.WriteString(rw, "<!doctype html><title>Not found</title>")
}

func (w *world) dial(mode Mode, more ...func(*ClientConfig)) *Client {
	cfg := ClientConfig{
		Transport: w.net,
		URL:       &url.URL{Scheme: "http", Host: "server.example", Path: "/a/b"},
		Key:       w.key.Public(),
		Engine:    "raw",
		Mode:      mode,
		Log:       testLog(w.t),
	}
	for _, f := range more {
		f(&cfg)
	}
	c := NewClient(cfg)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.local = append(w.local, c)
	return c
}

// pair is a client and its session at the server.
func (w *world) pair(mode Mode) (*Client, *Session) {
	c := w.dial(mode)
	<-c.Ready()
	return c, <-w.accepted
}

// end closes everything, and fails the test if something is left.
func (w *world) end() {
	w.t.Helper()
	w.net.set(nil)
	w.mu.Lock()
	local := w.local
	w.mu.Unlock()
	for _, c := range local {
		c.Conn().Close()
	}
	for _, c := range local {
		<-c.Done()
		if held := c.link.held.bytes(); held != 0 {
			w.t.Errorf("a client that has ended holds %d bytes", held)
		}
	}
	for _, c := range local {
		if m := c.cfg.Memory; m.Held() != 0 || m.sending.Load() != 0 || m.promised.bytes() != 0 {
			w.t.Errorf("of clients that have ended %d bytes are held, %d to be sent, %d promised", m.Held(), m.sending.Load(), m.promised.bytes())
		}
	}
	w.mu.Lock()
	for _, s := range w.remote {
		s.Conn().Close()
	}
	w.mu.Unlock()
	time.Sleep(farewellLife + Lifetime + 2*janitorEvery)
	w.empty("at the end")
	w.server.Close()
	w.net.handled.Wait()
	w.empty("after Close")
}

// empty fails the test if the server holds anything but the names of first messages.
func (w *world) empty(when string) {
	w.t.Helper()
	if s := w.server.Stats(); s.Sessions != 0 || s.Memory != w.server.admission.held.bytes() {
		w.t.Errorf("%s the server has %d sessions and holds %d bytes", when, s.Sessions, s.Memory)
	}
	w.server.mu.Lock()
	defer w.server.mu.Unlock()
	if w.server.unconfirmed != 0 {
		w.t.Errorf("%s %d sessions count as unconfirmed", when, w.server.unconfirmed)
	}
}

// datagram is the i-th one of a transfer: sizes of all kinds, told apart by
// every byte.
func datagram(i int) []byte {
	size := 9 + i*7919%1392
	switch i % 50 {
	case 7:
		size = 8
	case 23:
		size = wire.RecordRoom
	}
	p := slices.Clone(noise[i%1000:][:size])
	binary.BigEndian.PutUint64(p, uint64(i))
	return p
}

// noise is what datagrams are cut from.
var noise = func() []byte {
	p := make([]byte, wire.RecordRoom+1000)
	rand.NewChaCha8([32]byte{}).Read(p)
	return p
}()

// transfer writes n datagrams to one Conn, the second half of them at leisure,
// and expects them from another: exactly once, in order, byte for byte.
func transfer(t *testing.T, name string, from, to *Conn, n int) (finished chan struct{}) {
	finished = make(chan struct{})
	go func() {
		for i := range n {
			if _, err := from.WriteTo(datagram(i), nil); err != nil {
				t.Errorf("%s: datagram %d is not taken: %v", name, i, err)
				return
			}
			if i > n/2 && i%2 == 0 {
				time.Sleep(5 * time.Millisecond)
			}
		}
	}()
	go func() {
		defer close(finished)
		buf := make([]byte, wire.RecordRoom)
		for i := range n {
			k, _, err := to.ReadFrom(buf)
			if err != nil {
				t.Errorf("%s: instead of datagram %d: %v", name, i, err)
				return
			}
			if want := datagram(i); !bytes.Equal(buf[:k], want) {
				at := -1
				for j := range 10 * n {
					if bytes.Equal(buf[:k], datagram(j)) {
						at = j
						break
					}
				}
				t.Errorf("%s: instead of datagram %d came %d (-1: none of them)", name, i, at)
				return
			}
		}
	}()
	return finished
}

// quiet fails the test if c has something to read.
func quiet(t *testing.T, name string, c *Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(time.Minute))
	if n, _, err := c.ReadFrom(make([]byte, wire.RecordRoom)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%s: %d bytes more, %v", name, n, err)
	}
	c.SetReadDeadline(time.Time{})
}
