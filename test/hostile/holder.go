package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"turbotunnel/common/tunnel"
	"turbotunnel/common/wire"
)

// What follows are attacks of somebody who holds the bridge line. Numbers are
// those with which a review brought a server down.

var attacks = []attack{
	{name: "stuck", waits: true, run: func(ctx context.Context, r *rig) error { return stuck(ctx, r, stuckHTTP1) }},
	{name: "stuck-h2", waits: true, run: func(ctx context.Context, r *rig) error { return stuck(ctx, r, stuckHTTP2) }},
	{name: "early", run: early},
	{name: "acks", run: acks},
	{name: "rcvbuf", run: receiveBuffer},
	{name: "unread-smux", run: func(ctx context.Context, r *rig) error { return unread(ctx, r, "kcp-smux") }},
	{name: "unread-sctp", run: func(ctx context.Context, r *rig) error { return unread(ctx, r, "sctp") }},
	{name: "unread-quic", run: func(ctx context.Context, r *rig) error { return unread(ctx, r, "quic") }},
	{name: "streams", run: streams},
	{name: "polls", run: polls},
	{name: "heads", run: heads},
	{name: "fill", calm: true, run: fill},
	{name: "flood", calm: true, run: flood},
	{name: "twice", run: twice},
	{name: "later", run: later},
	{name: "oracle", run: oracle},
	{name: "oracle-site", setup: setup{site: true}, run: oracle},
	{name: "push", setup: setup{site: true}, run: push},
	{name: "idle", calm: true, run: idle},
	{name: "h2", run: manyStreams},
	{name: "proxy", setup: setup{proxy: true}, run: silentHandshake},
}

// early sends, in each session, 2047 empty records behind one that is missing.
func early(ctx context.Context, r *rig) error {
	c := overHTTP2()
	for range r.size(200, 10) {
		s, err := r.opened(ctx, c, "kcp-smux")
		if err != nil {
			return nil // the server has had enough of it
		}
		b := s.sealHead(s.newHead())
		for n := uint64(1); n < 2048; n++ {
			b = append(b, s.sealRecord(n, nil)...)
		}
		s.post(ctx, b) //nolint:errcheck // ended is as good as not
	}
	return nil
}

// acks sends, in one session, duplicates of a segment that is out of order, each
// of which KCP acknowledges, and takes none of that.
func acks(ctx context.Context, r *rig) error {
	s, err := r.opened(ctx, overHTTP2(), "kcp-smux")
	if err != nil {
		return err
	}
	one := kcpSegment(1, []byte{0})
	d := bytes.Repeat(one, 8192/len(one))
	until := time.Now().Add(time.Duration(r.size(20, 3)) * time.Second)
	for size := r.size(2<<30, 32<<20); r.sent.Load() < int64(size) && time.Now().Before(until); {
		if s.record+56 > s.grant { // the server takes no more for now
			if s.say(ctx) != nil {
				return nil
			}
			time.Sleep(5 * time.Millisecond)
			continue
		}
		b := s.sealHead(s.newHead())
		for range 56 {
			b = append(b, s.next(d, d)...)
		}
		if s.post(ctx, b) != nil {
			return nil // ended
		}
	}
	return nil
}

// receiveBuffer fills, in each session, KCP's receive buffer with segments of one
// byte out of order.
func receiveBuffer(ctx context.Context, r *rig) error {
	c := overHTTP2()
	for range r.size(50, 4) {
		s, err := r.opened(ctx, c, "kcp-smux")
		if err != nil {
			return nil
		}
		b := s.sealHead(s.newHead())
		for number := uint32(1); number < 16300; {
			var two [2][]byte
			for i := range two {
				for len(two[i])+25 <= 8192 {
					two[i] = append(two[i], kcpSegment(number, []byte{0})...)
					number++
				}
			}
			b = append(b, s.next(two[:]...)...)
		}
		s.post(ctx, b) //nolint:errcheck // ended is as good as not
	}
	time.Sleep(time.Second)
	return nil
}

// unreadRate is how fast unread writes, in bytes a second: an attacker's link of
// 500 Mbit/s. Without it the attacker's own work would starve the server, as both
// run on one machine here.
const unreadRate = 60 << 20

// unread has sessions of real clients write to streams that the target does not
// read, as much as goes.
func unread(ctx context.Context, r *rig, engine string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(r.size(20, 4))*time.Second)
	defer cancel()
	var group sync.WaitGroup
	defer group.Wait()
	block := bytes.Repeat([]byte{askNever}, 32<<10)
	pace := rate.NewLimiter(unreadRate, 8*len(block))
	for range r.size(10, 2) {
		d, err := tunnel.NewDialer(tunnel.Config{URL: r.url, Key: r.key.String(), Engine: engine}, tunnel.Options{})
		if err != nil {
			return err
		}
		for range 16 {
			group.Go(func() {
				st, err := d.Dial(ctx)
				if err != nil {
					return
				}
				context.AfterFunc(ctx, func() { st.Close() })
				for err == nil && pace.WaitN(ctx, len(block)) == nil {
					var n int
					n, err = st.Write(block)
					r.sent.Add(int64(n))
				}
			})
		}
		context.AfterFunc(ctx, func() { d.Close() })
	}
	return nil
}

// streams opens as many streams as sessions can, by frames alone.
func streams(ctx context.Context, r *rig) error {
	c := overHTTP2()
	sessions := r.size(6, 2)
	before := r.target.open.Load()
	var all []*session
	for range sessions {
		s, err := r.opened(ctx, c, "kcp-smux")
		if err != nil {
			return err
		}
		b := s.sealHead(s.newHead())
		var content, d []byte
		number, mark := uint32(0), byte(markOpen)
		for i := range uint32(4096) {
			content = append(content, smuxFrame(0, 2*i+1)...)
			if len(content)+9 > 1472 || i == 4095 {
				d = append(d, kcpSegment(number, append(content, mark))...)
				content, mark = nil, 0
				number++
			}
			if len(d)+1500 > 8192 || i == 4095 {
				b = append(b, s.next(d)...)
				d = nil
			}
		}
		if err := s.post(ctx, b); err != nil {
			return err
		}
		all = append(all, s)
	}
	for range r.size(10, 2) {
		time.Sleep(time.Second)
		for _, s := range all {
			s.say(ctx) //nolint:errcheck // ended is as good as not
		}
	}
	// A few hundred for each session, and a rate.
	if most := r.target.most.Load() - before; most > int64(300*sessions) {
		return fmt.Errorf("%d connections to the target", most)
	}
	if n := r.descriptors(); n > 4000 {
		return fmt.Errorf("%d descriptors", n)
	}
	return nil
}

// polls leaves many polls of one session waiting.
func polls(ctx context.Context, r *rig) error {
	s, err := r.opened(ctx, overHTTP2(), "kcp-smux")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(r.size(15, 3))*time.Second)
	defer cancel()
	var group sync.WaitGroup
	defer group.Wait()
	var waiting atomic.Int64
	n := r.size(20000, 1000)
	for i := 0; i < n && ctx.Err() == nil; i += 90 { // below the streams of a connection
		other := s.road
		other.client = overHTTP2()
		for range min(90, n-i) {
			h := s.newHead()
			h.Hold, h.Limit = 2*time.Minute, 1<<20
			b := s.sealHead(h)
			group.Go(func() {
				resp, err := other.request(ctx, b)
				if err != nil {
					return
				}
				waiting.Add(1)
				defer waiting.Add(-1)
				io.Copy(io.Discard, resp.Body) //nolint:errcheck // whatever ends it
				resp.Body.Close()
			})
		}
		time.Sleep(50 * time.Millisecond)
	}
	<-ctx.Done()
	return nil
}

// heads sends bodies full of heads, after many exchanges were not acknowledged.
func heads(ctx context.Context, r *rig) error {
	s, err := r.opened(ctx, overHTTP2(), "kcp-smux")
	if err != nil {
		return err
	}
	if err := s.startStream(ctx, askDrip); err != nil {
		return err
	}
	for until := time.Now().Add(time.Duration(r.size(40, 3)) * time.Second); time.Now().Before(until) && s.got.End() < 2040; {
		h := s.newHead()
		h.Hold, h.Limit = 20*time.Millisecond, 24<<10
		if err := s.post(ctx, s.sealHead(h)); err != nil {
			return nil // ended
		}
	}
	var b []byte
	for len(b) < 900<<10 {
		h := s.newHead()
		s.exchange--
		h.Window, h.Limit = 0, 0
		b = append(b, s.sealHead(h)...)
	}
	s.exchange++
	before := r.cpu()
	s.post(ctx, b) //nolint:errcheck // ended is as good as not
	if took := r.cpu() - before; took > 500*time.Millisecond {
		return fmt.Errorf("900 KB of heads cost %v of the server's time", took)
	}
	return nil
}

// A stuckVia opens a request whose answer is not read.
type stuckVia func(ctx context.Context, s *session, body []byte) (io.Closer, error)

// stuck has a session whose client reads nothing of an answer and says no more.
// What it holds must be gone when its lifetime is over.
func stuck(ctx context.Context, r *rig, via stuckVia) error {
	s, err := r.opened(ctx, overHTTP1(), "kcp-smux")
	if err != nil {
		return err
	}
	if err := s.startStream(ctx, askBlast); err != nil {
		return err
	}
	for r.target.blasts.Load() == 0 {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		time.Sleep(10 * time.Millisecond)
	}
	h := s.newHead()
	h.Stream, h.Quiet, h.Limit = 10*time.Minute, time.Second, 256<<20
	c, err := via(ctx, s, s.sealHead(h))
	if err != nil {
		return err
	}
	defer c.Close()
	lifetime := 310 * time.Second
	if !r.full {
		return nil // the unit tests have it in fake time
	}
	// The number of sessions tells nothing: the healthy client may have more than one.
	for start := time.Now(); ; {
		time.Sleep(time.Second)
		took := time.Since(start)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case r.target.blasts.Load() == 0 && took < lifetime/2:
			return fmt.Errorf("the stream has ended after %v", took)
		case r.target.blasts.Load() == 0:
			return nil
		case took > lifetime:
			return fmt.Errorf("the session's stream still lives after %v", lifetime)
		}
	}
}

func stuckHTTP1(ctx context.Context, s *session, body []byte) (io.Closer, error) {
	host, path, _ := strings.Cut(strings.TrimPrefix(s.url, "http://"), "/")
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp4", host)
	if err != nil {
		return nil, err
	}
	c.(*net.TCPConn).SetReadBuffer(4096) //nolint:errcheck // a larger one only holds more
	_, err = fmt.Fprintf(c, "POST /%s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s", path, host, len(body), body)
	return c, err
}

// fill opens sessions, confirmed ones, until the table is full, and beyond. A
// newcomer must still be let in.
func fill(ctx context.Context, r *rig) error {
	n := int64(r.size(65900, 300))
	var next atomic.Int64
	var group sync.WaitGroup
	until := time.Now().Add(2 * time.Minute)
	for range 16 {
		group.Go(func() {
			c := overHTTP2()
			for next.Add(1) <= n && time.Now().Before(until) {
				if s, err := r.opened(ctx, c, "kcp-smux"); err == nil {
					s.say(ctx) //nolint:errcheck // ended is as good as not
				}
			}
		})
	}
	group.Wait()
	return r.newcomer(ctx)
}

// newcomer opens a session as an honest client does.
func (r *rig) newcomer(ctx context.Context) error {
	s, err := r.opened(ctx, overHTTP2(), "kcp-smux")
	if err == nil {
		err = s.say(ctx)
	}
	if err != nil {
		return fmt.Errorf("a newcomer: %w", err)
	}
	return nil
}

// flood sends first messages as fast as it can, and nothing else.
func flood(ctx context.Context, r *rig) error {
	until := time.Now().Add(time.Duration(r.size(20, 2)) * time.Second)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for c := overHTTP2(); time.Now().Before(until); {
				ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
				if _, body, err := r.open(ctx, c, "kcp-smux", wire.Head{}); err == nil {
					body.Close()
				}
				cancel()
			}
		})
	}
	group.Wait()
	return r.newcomer(ctx)
}
