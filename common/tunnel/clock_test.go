package tunnel

import (
	"errors"
	"fmt"
	"io"
	"testing"
	"time"
)

// spent are Marks of a server to which all of today is spent: it lets nobody in by
// the clock.
type spent struct{}

func (spent) Load() ([]byte, error) {
	const format = "2006-01-02T15:04:05.000Z"
	now := time.Now().UTC()
	return fmt.Appendf(nil, "%s %s\n", now.Add(-time.Hour).Format(format), now.Add(time.Hour).Format(format)), nil
}

func (spent) Save([]byte) error { return nil }

// untimelySite is a site whose server refuses every client's first message for its
// time.
func untimelySite(t *testing.T) *site {
	s := newSite(t)
	s.start(func(cfg *ServerConfig) { cfg.Marks = spent{} }).Close()
	return s
}

// unconnected is a dialer whose first message is not made before connect is closed.
func (s *site) unconnected(t *testing.T, engine string) (d *Dialer, connect chan struct{}) {
	connect = make(chan struct{})
	d, err := NewDialer(s.config(engine), Options{Proxy: slowProxy(t, connect), Log: testLog()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d, connect
}

// A stream that has said nothing goes on in another session when the server tells
// the time, whatever it waits for.
func TestClockMovesStreams(t *testing.T) {
	each(t, func(t *testing.T, _ *site, _ *Dialer, name string) {
		s := untimelySite(t)
		d, connect := s.unconnected(t, name)
		early := func() Stream {
			st, err := d.DialEarly(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return st
		}
		if name == "quic" {
			close(connect) // it has no stream before
		}
		waits, writes := early(), early()
		read := make(chan error, 1)
		waits.SetReadDeadline(time.Now().Add(time.Hour))
		go func() {
			b := make([]byte, 7)
			_, err := io.ReadFull(waits, b)
			if err == nil && string(b) != "welcome" {
				err = fmt.Errorf("%q came", b)
			}
			waits.Close()
			read <- err
		}()
		waits.SetWriteDeadline(time.Now().Add(time.Hour)) // both move, too
		if name != "quic" {
			close(connect)
		}
		st := dial(t, d) // this one waits, as those of SOCKS do
		for _, st := range []Stream{st, writes} {
			// Neither has said anything before the server's answer.
			if _, err := io.WriteString(st, "hello"); err != nil {
				t.Fatal(err)
			}
			st.CloseWrite()
		}
		heard := 0
		for range 3 {
			far := s.accept()
			t.Cleanup(func() { far.Close() })
			if _, err := io.WriteString(far, "welcome"); err != nil {
				t.Fatal(err)
			}
			switch b, err := io.ReadAll(far); {
			case err != nil:
				t.Error(err)
			case string(b) == "hello":
				heard++
			case len(b) > 0:
				t.Errorf("the server reads %q", b)
			}
		}
		if err := <-read; err != nil || heard != 2 {
			t.Errorf("the stream that waits: %v; %d of two were heard", err, heard)
		}
		if n := s.server.Load().Stats().Untimely; n < 1 || n > 3 {
			t.Errorf("%d first messages were refused", n)
		}
	})
}

// A stream that has said something before says why it ends, and what it said does
// not arrive in another session. The next ones lose nothing.
func TestClockEndsStreams(t *testing.T) {
	each(t, func(t *testing.T, _ *site, _ *Dialer, name string) {
		if name == "quic" {
			return // nothing can be said before
		}
		s := untimelySite(t)
		d, connect := s.unconnected(t, name)
		lost, err := d.DialEarly(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(lost, "lost")
		lost.SetReadDeadline(time.Now().Add(20 * time.Millisecond)) // for the engine to say it
		lost.Read(make([]byte, 1))
		lost.SetReadDeadline(time.Time{})
		close(connect)
		if n, err := lost.Read(make([]byte, 1)); n > 0 || !errors.Is(err, ErrClock) {
			t.Errorf("%d bytes, %v, want ErrClock", n, err)
		}
		if _, err := io.WriteString(lost, "more"); !errors.Is(err, ErrClock) {
			t.Errorf("%v, want ErrClock", err)
		}
		lost.Close()
		st, err := d.DialEarly(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(st, "hello"); err != nil {
			t.Fatal(err)
		}
		st.CloseWrite()
		far := s.accept()
		if b, err := io.ReadAll(far); string(b) != "hello" || err != nil {
			t.Errorf("the server reads %q, %v", b, err)
		}
		far.Close()
		expectEnd(t, "the client", st)
		if n := s.server.Load().Stats(); n.Untimely != 1 || n.Accepted != 1 {
			t.Errorf("%+v, want one message refused and one stream accepted", n)
		}
	})
}
