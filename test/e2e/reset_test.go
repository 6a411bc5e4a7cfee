package e2e

import (
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"turbotunnel/common/engines"
	"turbotunnel/test/programs"
)

// part is what is written to a connection before it ends.
const part = "only a part"

// An ending is a way in which a program ends its connection, and how the
// program at the other side of the tunnel finds it ended.
type ending struct {
	name string
	end  func(conn *net.TCPConn)
	want error // nil: the end of the file
}

var endings = []ending{
	{"close", func(conn *net.TCPConn) { conn.Close() }, nil},
	{"reset", reset, syscall.ECONNRESET},
}

// reset ends conn as the kernel ends the connections of a program that crashed.
func reset(conn *net.TCPConn) {
	conn.SetLinger(0)
	conn.Close()
}

// moments are when a connection ends: what is done before, with from at the end
// that is about to end it and to at the other one, and what to has not read yet.
var moments = []struct {
	name  string
	until func(t *testing.T, from, to *net.TCPConn) (unread string)
}{
	{"at once", func(t *testing.T, from, _ *net.TCPConn) string {
		tell(t, from, part)
		return part
	}},
	{"after it was heard", func(t *testing.T, from, to *net.TCPConn) string {
		tell(t, from, part)
		says(t, to, part)
		return ""
	}},
	// As after a request: that it is complete says nothing of the answer.
	{"after the other's half-close", func(t *testing.T, from, to *net.TCPConn) string {
		tell(t, to, part)
		if err := to.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(from); string(got) != part || err != nil {
			t.Fatalf("%q came: %v", got, err)
		}
		tell(t, from, part)
		return part
	}},
}

// TestReset ends connections on both sides of the tunnel: the other side finds
// them ended in the same way, so that a part is never taken for the whole.
func TestReset(t *testing.T) {
	t.Parallel()
	for _, engine := range engines.Names() {
		t.Run(engine, func(t *testing.T) {
			connect := ends(t, engine)
			for _, how := range endings {
				for _, when := range moments {
					t.Run("application "+how.name+" "+when.name, func(t *testing.T) {
						application, destination := connect(t)
						unread := when.until(t, application, destination)
						how.end(application)
						how.arrives(t, destination, unread)
					})
					t.Run("destination "+how.name+" "+when.name, func(t *testing.T) {
						application, destination := connect(t)
						unread := when.until(t, destination, application)
						how.end(destination)
						how.arrives(t, application, unread)
					})
				}
			}
		})
	}
}

// arrives reads conn to its end, which must be the one of the other side. What
// was written before a clean end is there; a reset may overtake it.
func (e ending) arrives(t *testing.T, conn net.Conn, unread string) {
	t.Helper()
	got, err := io.ReadAll(conn)
	if !errors.Is(err, e.want) || !strings.HasPrefix(unread, string(got)) {
		t.Errorf("%q came, then %v; want %q, then %v", got, err, unread, e.want)
	}
	if e.want == nil && string(got) != unread {
		t.Errorf("%q came before a clean end, want %q", got, unread)
	}
}

// ends starts the programs with an engine, and returns what makes a connection
// through them and returns both its ends.
func ends(t *testing.T, engine string) func(t *testing.T) (application, destination *net.TCPConn) {
	t.Helper()
	accepted, over := make(chan *net.TCPConn), make(chan struct{})
	forward := listen(t, anyPort, func(conn *net.TCPConn) {
		select {
		case accepted <- conn:
			<-over
		case <-over:
		}
	})
	t.Cleanup(func() { close(over) })
	addr := tunnelTo(t, forward.Addr().String(), engine)
	return func(t *testing.T) (application, destination *net.TCPConn) {
		t.Helper()
		application = dial(t, addr)
		select {
		case destination = <-accepted:
		case <-time.After(programs.WaitLimit):
			t.Fatal("the connection does not reach its destination")
		}
		t.Cleanup(func() { destination.Close() }) // or the programs would wait for it at their end
		return application, destination
	}
}
