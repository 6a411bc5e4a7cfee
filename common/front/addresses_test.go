package front

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A fault is what an address does instead of serving.
type fault string

const (
	serves   fault = ""
	drops    fault = "drops packets"
	refuses  fault = "refuses"
	hangsTLS fault = "says nothing in TLS"
	cutsTLS  fault = "ends the connection in TLS"
)

// A manyHomed front has several addresses of which some are at fault.
type manyHomed struct {
	*memory
	ips []netip.Addr

	lookups atomic.Int32
	mu      sync.Mutex
	faults  map[string]fault // by IP
	dialled []string         // IPs
	dns     func(ctx context.Context) error
}

func (m *manyHomed) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	m.lookups.Add(1)
	m.mu.Lock()
	dns := m.dns
	m.mu.Unlock()
	if dns != nil {
		if err := dns(ctx); err != nil {
			return nil, err
		}
	}
	return m.ips, nil
}

func (m *manyHomed) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	f := m.faults[host]
	m.dialled = append(m.dialled, host)
	m.mu.Unlock()
	if f == serves {
		return m.memory.dial(ctx, "", "")
	}
	now := m.open.Add(1)
	for most := m.most.Load(); now > most && !m.most.CompareAndSwap(most, now); most = m.most.Load() {
	}
	gone := func() { m.open.Add(-1) }
	switch f {
	case refuses:
		gone()
		return nil, errors.New("connection refused")
	case hangsTLS, cutsTLS:
		client, server := net.Pipe()
		go func() {
			if f == cutsTLS {
				server.Read(make([]byte, 1))
				server.Close()
			}
			io.Copy(io.Discard, server)
		}()
		return &dark{Conn: client, closed: gone, done: make(chan struct{})}, nil
	}
	<-ctx.Done()
	gone()
	return nil, ctx.Err()
}

// set lets addresses be at fault.
func (m *manyHomed) set(f fault, ips ...netip.Addr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, ip := range ips {
		m.faults[ip.String()] = f
	}
}

// taken returns the addresses dialled since it was called last.
func (m *manyHomed) taken() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	taken := m.dialled
	m.dialled = nil
	return taken
}

// inManyHomed runs a test on a front with so many addresses, of the two families
// in turn.
func inManyHomed(t *testing.T, addresses int, o serverOptions, test func(t *testing.T, f *Front, m *manyHomed)) {
	authorityOf() // outside the bubble, as tests share it
	synctest.Test(t, func(t *testing.T) {
		m := &manyHomed{memory: newMemory(), faults: make(map[string]fault)}
		m.delay = 20 * time.Millisecond
		for i := range addresses {
			ip := netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", i+1))
			if i%2 == 1 {
				ip = netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", i+1))
			}
			m.ips = append(m.ips, ip)
		}
		o.listener = m.memory
		s := serve(t, o, holding)
		f := newFront(t, s, func(c *Config) {
			c.UTLS = "none"
			c.Addr, c.Dialer, c.Lookup = "", m.dial, m.lookup
		})
		defer f.endWith(s)
		test(t, f, m)
	})
}

// Nine addresses of ten are at fault, each way that there is: the tenth one
// answers soon, and the next connection goes there at once.
func TestOneGoodAddressOfTen(t *testing.T) {
	for _, fault := range []fault{drops, refuses, hangsTLS, cutsTLS} {
		for _, noH2 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, http/1.1 %t", fault, noH2), func(t *testing.T) {
				inManyHomed(t, 10, serverOptions{noH2: noH2}, func(t *testing.T, f *Front, m *manyHomed) {
					m.set(fault, m.ips[:9]...)
					s := send(t.Context(), f, "x")
					if err := s.wait(); err != nil || s.took > 2*time.Second {
						t.Errorf("after %v: %v", s.took, err)
					}
					if dialled := m.taken(); len(dialled) != 10 {
						t.Errorf("dialled %v", dialled)
					}
					if most := m.most.Load(); most > maxRacing {
						t.Errorf("%d dials at once", most)
					}
					synctest.Wait()
					if open := m.open.Load(); open != 1 {
						t.Errorf("%d connections", open)
					}
					time.Sleep(idleTimeout + time.Second)
					exchange(t, f, "x")
					if dialled := m.taken(); !slices.Equal(dialled, []string{m.ips[9].String()}) {
						t.Errorf("then dialled %v", dialled)
					}
					if n := m.lookups.Load(); n != 2 {
						t.Errorf("%d questions to DNS", n)
					}
				})
			})
		}
	}
}

// All addresses that are used have been tried within two seconds, ten at a time.
func TestLastOfManyAddresses(t *testing.T) {
	inManyHomed(t, maxAddresses+2, serverOptions{}, func(t *testing.T, f *Front, m *manyHomed) {
		m.set(drops, m.ips...)
		m.set(serves, m.ips[maxAddresses-1])
		s := send(t.Context(), f, "x")
		if err := s.wait(); err != nil || s.took > 2*time.Second+200*time.Millisecond {
			t.Errorf("after %v: %v", s.took, err)
		}
		if most := m.most.Load(); most > maxRacing+1 { // one is ending
			t.Errorf("%d dials at once", most)
		}
		for _, o := range f.pool.dials.addresses.known[:maxAddresses-1] {
			if o.works() {
				t.Errorf("%s is not known to be bad", o.text)
			}
		}
	})
}

// An address that is blocked while a session lives is left for another one within
// two seconds, and so is the next one.
func TestAddressBlockedInSession(t *testing.T) {
	for _, noH2 := range []bool{false, true} {
		inManyHomed(t, 3, serverOptions{noH2: noH2}, func(t *testing.T, f *Front, m *manyHomed) {
			exchange(t, f, "x")
			for i := range 2 {
				m.set(drops, m.ips[i])
				for _, c := range m.all {
					c.dark.Store(true)
				}
				m.taken()
				begun := time.Now()
				for range 2 {
					send(t.Context(), f, "x") // is lost
				}
				for send(t.Context(), f, "x").wait() != nil {
					// on the dead connection: who makes the exchanges asks again
				}
				if took := time.Since(begun); took > 2*time.Second {
					t.Errorf("answered after %v", took)
				}
				for _, ip := range m.taken() {
					// Over HTTP/1.1 dials begin before anything is known.
					if ip != m.ips[i+1].String() && !noH2 {
						t.Errorf("dialled %s after %s was blocked", ip, m.ips[i])
					}
				}
				time.Sleep(20 * time.Second)
			}
		})
	}
}

// A way that is long, but works, is not dialled twice.
func TestLongWayToManyAddresses(t *testing.T) {
	inManyHomed(t, 4, serverOptions{}, func(t *testing.T, f *Front, m *manyHomed) {
		m.delay = attemptDelay * 2 / 5
		exchange(t, f, "x")
		if dialled := m.taken(); len(dialled) != 1 {
			t.Errorf("dialled %v", dialled)
		}
	})
}

// When all addresses fail the exchange fails at once and says why, every one was
// tried, and they are all tried again for the next one.
func TestAllAddressesFail(t *testing.T) {
	inManyHomed(t, 6, serverOptions{}, func(t *testing.T, f *Front, m *manyHomed) {
		m.set(refuses, m.ips...)
		for range 3 {
			begun := time.Now()
			e := failure(t, f, t.Context(), OpConnect)
			if !strings.Contains(e.Error(), "none of 6 addresses can be reached, the last: connection refused") || time.Since(begun) != 0 {
				t.Errorf("after %v: %v", time.Since(begun), e)
			}
			dialled := m.taken()
			slices.Sort(dialled)
			if len(slices.Compact(dialled)) != 6 {
				t.Errorf("dialled %v", dialled)
			}
		}
		m.set(serves, m.ips[3])
		exchange(t, f, "x")
	})
}

// DNS is asked again after a while, and more than once when it is slow. While it
// says nothing what it has said before is good enough.
func TestAnswersAreKept(t *testing.T) {
	inManyHomed(t, 2, serverOptions{}, func(t *testing.T, f *Front, m *manyHomed) {
		var lost atomic.Int32
		lost.Store(2)
		m.dns = func(ctx context.Context) error {
			if lost.Add(-1) < 0 {
				return nil
			}
			<-ctx.Done()
			return ctx.Err()
		}
		s := send(t.Context(), f, "x")
		if err := s.wait(); err != nil || s.took > 2*redialAfter+time.Second/2 {
			t.Errorf("after %v: %v", s.took, err)
		}
		f.pool.abandon()
		exchange(t, f, "x")
		if n := m.lookups.Load(); n != 3 {
			t.Errorf("%d questions to DNS", n)
		}
		f.pool.abandon()
		time.Sleep(answersKept)
		lost.Store(100)
		s = send(t.Context(), f, "x")
		if err := s.wait(); err != nil || s.took > answersWait+time.Second/2 {
			t.Errorf("with a silent DNS after %v: %v", s.took, err)
		}
		f.pool.abandon()
		m.mu.Lock()
		m.dns = func(context.Context) error { return errors.New("refused") }
		m.mu.Unlock()
		exchange(t, f, "x")
	})
}

// Without any address the exchange fails at the step at which it is.
func TestNoAnswer(t *testing.T) {
	inManyHomed(t, 0, serverOptions{}, func(t *testing.T, f *Front, m *manyHomed) {
		if e := failure(t, f, t.Context(), OpResolve); !strings.Contains(e.Error(), "no address") {
			t.Errorf("error %v", e)
		}
		m.mu.Lock()
		m.dns = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		m.mu.Unlock()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		failure(t, f, ctx, OpResolve)
		if n := m.lookups.Load(); n > 1+maxLookups {
			t.Errorf("%d questions to DNS", n)
		}
	})
}

// A proxy has addresses, too.
func TestProxyWithManyAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var dialled []string
		f := newFront(t, &server{addr: "192.0.2.1:443"}, func(c *Config) {
			c.Proxy = &url.URL{Scheme: "socks5", Host: "proxy.example:1"}
			c.Lookup = func(_ context.Context, host string) ([]netip.Addr, error) {
				if host != "proxy.example" {
					t.Errorf("asked for %q", host)
				}
				return []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")}, nil
			}
			c.Dialer = func(_ context.Context, _, addr string) (net.Conn, error) {
				dialled = append(dialled, addr)
				return nil, errors.New("connection refused")
			}
		})
		failure(t, f, t.Context(), OpProxy)
		if want := []string{"192.0.2.2:1", "192.0.2.3:1"}; !slices.Equal(dialled, want) {
			t.Errorf("dialled %v, want %v", dialled, want)
		}
	})
}

// What an address has done is remembered for a time that grows and ends.
func TestBadAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &addresses{port: "443"}
		var ips []netip.Addr
		for _, text := range []string{"192.0.2.1", "192.0.2.2", "2001:db8::1", "192.0.2.2", "192.0.2.3"} {
			ips = append(ips, netip.MustParseAddr(text))
		}
		a.learn(ips)
		next := func(want string) *address {
			t.Helper()
			got := a.next(func(*address) bool { return false })
			if got.text != want {
				t.Errorf("%s is next, want %s", got.text, want)
			}
			return got
		}
		const first, second, third, fourth = "192.0.2.1:443", "[2001:db8::1]:443", "192.0.2.2:443", "192.0.2.3:443"
		a.search()
		for _, want := range []string{first, second, third, fourth} {
			next(want).fails()
			time.Sleep(time.Second)
		}
		if a.untried() {
			t.Error("all were tried")
		}
		a.search()
		next(first) // whose time ends first
		time.Sleep(minBad)
		a.search()
		bad := next(first)
		bad.fails()
		time.Sleep(minBad)
		a.search()
		next(second) // as the first has failed twice
		time.Sleep(minBad)
		a.search()
		next(second) // which has failed longer ago
		for range 20 {
			bad.fails()
			if left := time.Until(bad.bad); left > maxBad {
				t.Errorf("bad for %v", left)
			}
			time.Sleep(time.Until(bad.bad))
		}
		bad.serves()
		bad.fails()
		if left := time.Until(bad.bad); left != minBad {
			t.Errorf("bad for %v after it had served", left)
		}
		a.known[2].connects()
		a.search()
		next(third)
		a.learn(ips[:3]) // what is known of an address stays
		a.search()
		next(third)
	})
}

// The system's resolver, and sockets: a name may have an address at which nobody
// listens.
func TestLocalhost(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(echo)}
	var running sync.WaitGroup
	running.Go(func() { s.Serve(l) })
	defer running.Wait()
	defer s.Close()
	f, err := New(Config{URL: &url.URL{Scheme: "http", Host: fmt.Sprintf("localhost:%d", l.Addr().(*net.TCPAddr).Port)}})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got := exchange(t, f, "x"); got != "x" {
		t.Errorf("read %q", got)
	}
}
