package e2e

import (
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"turbotunnel/common/carrier"
	"turbotunnel/test/programs"
)

// TestClientKilled kills the client: the server forgets its session, and gives
// the connection at its end back, after the session's lifetime.
//
// It waits for minutes while it costs nothing. For that reason it runs beside
// the others; it is in the first file, so that it is the first to start.
func TestClientKilled(t *testing.T) {
	t.Parallel()
	type session struct {
		engine string
		ended  chan struct{}
	}
	var sessions []session
	for _, engine := range engines {
		ended := make(chan struct{})
		forward := listen(t, anyPort, func(conn *net.TCPConn) {
			conn.SetDeadline(time.Time{})
			io.Copy(conn, conn)
			close(ended)
		}).Addr().String()
		server, _ := runServer(t, forward)
		client, p := runClient(t, "http://"+server, "-engine", engine)
		conn := dial(t, client)
		tell(t, conn, "hello")
		says(t, conn, "hello")
		if err := p.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		sessions = append(sessions, session{engine, ended})
	}
	limit := time.After(carrier.Lifetime + programs.WaitLimit)
	for _, s := range sessions {
		select {
		case <-s.ended:
		case <-limit:
			t.Fatalf("%s: the server still holds the connection", s.engine)
		}
	}
}
