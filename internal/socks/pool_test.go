package socks

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// newFakePool returns a pool of fakes and the fakes that it has made so far.
func newFakePool() (*pool, *[]*fakeDialer) {
	var made []*fakeDialer
	p := newPool(func(config) (Dialer, error) {
		d := newFakeDialer(func(context.Context) (stream, error) { return nil, errors.New("no") })
		made = append(made, d)
		return d, nil
	})
	return p, &made
}

func closed(d *fakeDialer) bool {
	select {
	case <-d.closed:
		return true
	default:
		return false
	}
}

func TestEqualConfigsShareADialer(t *testing.T) {
	p, made := newFakePool()
	defer p.Close()
	a, _ := p.acquire(config{URL: "http://a.example/"})
	b, _ := p.acquire(config{URL: "http://a.example/"})
	c, _ := p.acquire(config{URL: "http://a.example/", Mode: "poll"})
	if a != b || a == c || len(*made) != 2 {
		t.Errorf("%d dialers, shared: %v", len(*made), a == b)
	}
}

func TestIdleDialersEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, made := newFakePool()
		cfg := config{URL: "http://a.example/"}
		e, _ := p.acquire(cfg)
		time.Sleep(10 * idleTime)
		if closed((*made)[0]) {
			t.Fatal("closed while in use")
		}
		p.release(e)
		time.Sleep(idleTime - 1)
		again, _ := p.acquire(cfg)
		if again != e {
			t.Fatal("not kept long enough")
		}
		time.Sleep(10 * idleTime)
		if closed((*made)[0]) {
			t.Fatal("closed while in use again")
		}
		p.release(e)
		time.Sleep(idleTime)
		synctest.Wait()
		if !closed((*made)[0]) {
			t.Fatal("idle, and not closed")
		}
		if e, _ = p.acquire(cfg); len(*made) != 2 {
			t.Error("a closed dialer was given out")
		}
		p.release(e)
		p.Close()
		if !closed((*made)[1]) {
			t.Error("Close left a dialer open")
		}
		if _, err := p.acquire(cfg); err == nil {
			t.Error("a closed pool made a dialer")
		}
	})
}

// A dialer on which something is on its way is not dropped, unless its server is not
// heard any more.
func TestPendingDialersStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, made := newFakePool()
		defer p.Close()
		e, _ := p.acquire(config{URL: "http://a.example/"})
		d := (*made)[0]
		d.pending, d.heard = true, time.Now().Add(idleTime+time.Second)
		p.release(e)
		time.Sleep(idleTime + lookTime - time.Second)
		if closed(d) {
			t.Fatal("what was written is cut")
		}
		time.Sleep(lookTime + 2*time.Second)
		if !closed(d) {
			t.Error("nothing is heard of its server, and it lives on")
		}
	})
}

// Room is made by the dialer that is missed least.
func TestEvict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, made := newFakePool()
		defer p.Close()
		begin := time.Now()
		for i, d := range []struct {
			used, pending bool
			heard         time.Duration // since the beginning
		}{
			{used: true},
			{pending: true, heard: time.Hour},
			{},
			{pending: true, heard: time.Minute},
			{},
		} {
			e, _ := p.acquire(config{URL: fmt.Sprint("http://", i, ".example/")})
			(*made)[i].pending, (*made)[i].heard = d.pending, begin.Add(d.heard)
			if !d.used {
				p.release(e)
			}
			time.Sleep(time.Second)
		}
		for n, want := range []int{2, 4, 3, 1} {
			p.mu.Lock()
			ok := p.evict()
			p.mu.Unlock()
			if synctest.Wait(); !ok || !closed((*made)[want]) {
				t.Errorf("the one that goes as number %d is not %d", n, want)
			}
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.evict() {
			t.Error("one that is used goes")
		}
	})
}

func TestPoolIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, made := newFakePool()
		defer p.Close()
		cfg := func(i int) config { return config{URL: fmt.Sprint("http://", i, ".example/")} }
		var entries []*entry
		for i := range maxEntries {
			e, err := p.acquire(cfg(i))
			if err != nil {
				t.Fatal(err)
			}
			entries = append(entries, e)
		}
		if _, err := p.acquire(cfg(maxEntries)); err == nil {
			t.Fatal("no bound")
		}
		// The one that has been idle longest makes room.
		p.release(entries[7])
		time.Sleep(time.Second)
		p.release(entries[3])
		if _, err := p.acquire(cfg(maxEntries)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !closed((*made)[7]) || closed((*made)[3]) {
			t.Error("the wrong dialer was closed")
		}
	})
}
