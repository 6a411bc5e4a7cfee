package kcpsmux

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/xtaci/smux"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/enginetest"
	"turbotunnel/common/engine/kcp"
)

func TestConformance(t *testing.T) { enginetest.Run(t, Engine{}) }

func TestEarly(t *testing.T) { enginetest.RunEarly(t, Engine{}) }

func TestAccount(t *testing.T) { enginetest.RunAccount(t, Engine{}) }

func BenchmarkEngine(b *testing.B) { enginetest.Benchmark(b, Engine{}) }

// plain is how a smux of somebody else's is set up.
func plain() *smux.Config {
	config := smux.DefaultConfig()
	config.Version, config.KeepAliveDisabled = 2, true
	return config
}

// both moves content there and back between ours and a plain smux's stream.
func both(t *testing.T, ours engine.Stream, theirs *smux.Stream) {
	t.Helper()
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // beyond every first window
	go func() { ours.Write(content); ours.CloseWrite() }()
	if got, err := io.ReadAll(theirs); err != nil || !bytes.Equal(got, content) {
		t.Errorf("theirs reads %d bytes, %v", len(got), err)
	}
	go func() { theirs.Write(content); theirs.CloseWrite() }()
	if got, err := io.ReadAll(ours); err != nil || !bytes.Equal(got, content) {
		t.Errorf("ours reads %d bytes, %v", len(got), err)
	}
}

// TestPlainServer: the other end is plain smux.Server over the plain stream of the
// engine kcp. When it ends, the session does.
func TestPlainServer(t *testing.T) {
	enginetest.Bubble(t, func(t *testing.T) {
		path := enginetest.Path{Delay: 50 * time.Millisecond}
		x, y := enginetest.Connect(path, path, 1)
		client, err := Engine{}.Client(x)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		session, err := kcp.Engine{}.Server(y)
		if err != nil {
			t.Fatal(err)
		}
		defer session.Close()
		ours, err := client.Open(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		channel, err := session.Accept(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		server, err := smux.Server(channel, plain())
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := server.AcceptStream()
		if err != nil {
			t.Fatal(err)
		}
		both(t, ours, theirs)
		ours, err = client.Open(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Second, func() { server.Close() })
		start := time.Now()
		if _, err := ours.Read(make([]byte, 1)); !errors.Is(err, engine.ErrReset) {
			t.Errorf("Read when the other end's smux has ended: %v", err)
		}
		<-client.Done()
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("the session ended %v after its stream", took-time.Second)
		}
	})
}

// TestPlainClient: the same with plain smux.Client.
func TestPlainClient(t *testing.T) {
	enginetest.Bubble(t, func(t *testing.T) {
		path := enginetest.Path{Delay: 50 * time.Millisecond}
		x, y := enginetest.Connect(path, path, 1)
		session, err := kcp.Engine{}.Client(x)
		if err != nil {
			t.Fatal(err)
		}
		defer session.Close()
		server, err := Engine{}.Server(y)
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		channel, err := session.Open(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		client, err := smux.Client(channel, plain())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		theirs, err := client.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		ours, err := server.Accept(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		both(t, ours, theirs)
	})
}
