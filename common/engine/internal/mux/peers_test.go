package mux

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/xtaci/smux"

	"turbotunnel/common/engine"
	"turbotunnel/common/engine/internal/half"
)

// window is an UPD that tells another window than ours.
func window(id, consumed, size uint32) []byte {
	return frame(cmdUPD, id, binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, consumed), size)...)
}

// TestHugeWindow: a window that smux's signed arithmetic takes for negative keeps
// no call waiting.
func TestHugeWindow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := connect(1 << 20)
		server := start(t, b, false)
		a.Write(join(frame(cmdSYN, 3), window(3, 0, 1<<31)))
		st := accept(t, server)
		synctest.Wait()
		st.SetWriteDeadline(time.Now().Add(time.Second))
		if n, err := st.Write([]byte("hello")); n != 5 || err != nil {
			t.Errorf("Write: %d, %v", n, err)
		}
		st.Close()
		server.Close()
	})
}

// TestShrinkingWindow: a plain smux tells less at its first Read than its first
// window was. What is already on its way then counts, and nothing waits in smux.
func TestShrinkingWindow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := connect(16 << 10)
		client := start(t, a, true)
		st := open(t, client)
		go st.Write(make([]byte, firstWindow)) // until the session ends
		buf := make([]byte, 4096)
		for total := 0; total < 200<<10; {
			n, _ := b.Read(buf)
			total += n
			synctest.Wait()
		}
		b.Write(window(3, 100<<10, 64<<10))
		synctest.Wait()
		go io.Copy(io.Discard, struct{ io.Reader }{b}) // the carrier takes again
		other := open(t, client)
		other.SetWriteDeadline(time.Now().Add(time.Second))
		if _, err := other.Write([]byte("x")); err != nil {
			t.Errorf("another stream's Write: %v", err)
		}
		st.SetWriteDeadline(time.Now().Add(time.Second))
		if _, err := st.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a Write beyond the window: %v", err)
		}
		st.Close()
		client.Close()
	})
}

// TestCloseDuringWrite: a plain smux that closes a stream while it writes may send
// bytes behind the end. They are thrown away, and its session goes on.
func TestCloseDuringWrite(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := connect(1 << 30)
		server := start(t, b, false)
		config := smux.DefaultConfig()
		config.Version, config.KeepAliveDisabled = 2, true
		plain, err := smux.Client(a, config)
		if err != nil {
			t.Fatal(err)
		}
		defer plain.Close()
		for range 20 {
			y, err := plain.OpenStream()
			if err != nil {
				t.Fatal(err)
			}
			st := accept(t, server)
			done := make(chan error)
			go func() { _, err := io.Copy(io.Discard, st); done <- err }()
			go func() {
				for err := error(nil); err == nil; {
					_, err = y.Write(make([]byte, 200<<10))
				}
			}()
			for range 50 {
				runtime.Gosched() // somewhere in the middle
			}
			y.Close()
			if err := <-done; err != nil {
				t.Fatalf("reading: %v; the session: %v", err, b.Err())
			}
			st.Close()
		}
		synctest.Wait()
		if err := b.Err(); err != nil || server.held != 0 {
			t.Errorf("the session: %v; %d bytes are held", err, server.held)
		}
	})
}

// TestDataAfterTheEnd: what a peer sends behind its end is neither read nor held.
func TestDataAfterTheEnd(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := connect(1 << 20)
		server := start(t, b, false)
		a.Write(join(frame(cmdSYN, 3), frame(cmdPSH, 3, 'x'), frame(cmdFIN, 3), frame(cmdPSH, 3, 'y')))
		synctest.Wait()
		st := accept(t, server)
		if got, err := io.ReadAll(st); err != nil || string(got) != "x" || server.held != streamCost {
			t.Errorf("read %q, %v; %d bytes are held", got, err, server.held)
		}
	})
}

// TestOldUpdate: no UPD has a Write wait in smux, where no deadline reaches it, and the
// session's end neither.
func TestOldUpdate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := connect(1 << 20)
		server := start(t, b, false)
		a.Write(join(frame(cmdSYN, 3), update(3, 1<<31+1, firstWindow)))
		st := accept(t, server)
		done := make(chan struct{})
		go func() {
			defer close(done)
			if n, err := st.Write([]byte("hello")); n != 5 || err != nil {
				t.Errorf("wrote %d bytes, %v", n, err)
			}
		}()
		synctest.Wait()
		if !half.IsClosed(done) {
			t.Error("Write waits in smux")
			a.Write(update(3, 0, firstWindow)) // which ends that
		}
		<-done
	})
}

// TestPromisedBeyondWindow: a peer that sends more than its window does not have this
// side count less than it has promised.
func TestPromisedBeyondWindow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := connect(1 << 30)
		server := start(t, b, false)
		a.Write(frame(cmdSYN, 3))
		st := accept(t, server)
		for range streamWindow/frameSize + 1 {
			a.Write(frame(cmdPSH, 3, make([]byte, frameSize)...))
		}
		a.Write(frame(cmdFIN, 3))
		synctest.Wait()
		if n, err := io.Copy(io.Discard, st); n != streamWindow+frameSize || err != nil {
			t.Errorf("read %d bytes, %v", n, err)
		}
		st.Close()
		if server.promised != 0 || b.promised.Load() != 0 {
			t.Errorf("%d bytes are promised, of which the carrier knows %d", server.promised, b.promised.Load())
		}
	})
}

// TestPromisedBeyondSmallWindow: nor does a frame that is larger than the whole window.
func TestPromisedBeyondSmallWindow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := connect(1 << 30)
		a.room.Store(0)
		st := open(t, start(t, a, true))
		b.Write(frame(cmdPSH, st.id, make([]byte, maxFrame)...))
		if n, err := io.ReadFull(st, make([]byte, maxFrame)); err != nil {
			t.Errorf("read %d bytes, %v", n, err)
		}
		if a.promised.Load() != frameSize {
			t.Errorf("%d bytes are promised; want a frame", a.promised.Load())
		}
		st.Close()
		if a.promised.Load() != 0 {
			t.Errorf("%d bytes are promised", a.promised.Load())
		}
	})
}

// TestHeldBySmallFrames: large frames that are read take nothing off the account of
// the small ones behind them.
func TestHeldBySmallFrames(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := connect(1 << 20)
		server := start(t, b, false)
		a.Write(frame(cmdSYN, 3))
		st := accept(t, server)
		a.Write(frame(cmdPSH, 3, make([]byte, frameSize)...))
		const small = 1000
		for range small {
			a.Write(frame(cmdPSH, 3, 'x'))
		}
		synctest.Wait()
		for _, size := range []int{1000, frameSize - 1000} {
			if _, err := io.ReadFull(st, make([]byte, size)); err != nil {
				t.Fatal(err)
			}
		}
		if want := small * cost(1); server.held != want+streamCost || st.cost != want {
			t.Errorf("%d held, %d for the stream; want %d for %d frames of a byte", server.held, st.cost, want, small)
		}
		if _, err := io.ReadFull(st, make([]byte, small)); err != nil || server.held != streamCost {
			t.Errorf("at the end %d held, %v", server.held, err)
		}
	})
}

// TestAcceptAfterTheEnd: a stream that came before the session's end can be accepted
// after it.
func TestAcceptAfterTheEnd(t *testing.T) {
	for range 20 {
		bubble(t, func(t *testing.T) {
			a, b := connect(1 << 20)
			server := start(t, b, false)
			a.Write(join(frame(cmdSYN, 3), frame(cmdPSH, 3, 'x'), frame(cmdFIN, 3)))
			synctest.Wait()
			a.Close()
			synctest.Wait()
			if got, err := io.ReadAll(accept(t, server)); err != nil || string(got) != "x" {
				t.Errorf("read %q, %v", got, err)
			}
		})
	}
}

// TestResetAfterCloseWrite: an end of file that was not read yet becomes a failure.
func TestResetAfterCloseWrite(t *testing.T) {
	bubble(t, func(t *testing.T) {
		client, server := pair(t)
		c, s := open(t, client), accept(t, server)
		io.WriteString(c, "abc")
		c.CloseWrite()
		c.Reset()
		synctest.Wait()
		if got, err := io.ReadAll(s); string(got) != "abc" || !errors.Is(err, engine.ErrReset) {
			t.Errorf("read %q, %v", got, err)
		}
	})
}

// gated is a channel whose Read waits for a token.
type gated struct {
	*memory
	gate chan struct{}
}

func (g gated) Read(p []byte) (int, error) { <-g.gate; return g.memory.Read(p) }

// TestEndAfterBytes: Read returns what has come, and its end, before it says that
// the session has ended, however late the session is in taking it in.
func TestEndAfterBytes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		a, b := connect(1 << 20)
		g := gated{b, make(chan struct{}, 1)}
		server := start(t, g, false)
		a.Write(frame(cmdSYN, 3))
		g.gate <- struct{}{}
		st := accept(t, server)
		a.Write(join(frame(cmdPSH, 3, 'x'), frame(cmdFIN, 3)))
		b.Fail(engine.ErrReset)
		time.AfterFunc(time.Second, func() { close(g.gate) })
		if got, err := io.ReadAll(st); string(got) != "x" || err != nil {
			t.Errorf("read %q, %v", got, err)
		}
	})
}

// finGate is a channel that is slow to take a FIN.
type finGate struct {
	*memory
	gate chan struct{}
}

func (g finGate) Append(parts ...[]byte) (int, error) {
	if parts[0][1] == cmdFIN {
		<-g.gate
	}
	return g.memory.Append(parts...)
}

// TestNumberInUse: a SYN with the number of a stream that is being closed ends the
// session: smux would not make a stream of it, and Accept would wait for ever.
func TestNumberInUse(t *testing.T) {
	a, b := connect(1 << 20)
	g := finGate{b, make(chan struct{})}
	server := start(t, g, false)
	a.Write(frame(cmdSYN, 3))
	st := accept(t, server)
	closed := make(chan struct{})
	go func() { st.Close(); close(closed) }()
	for err := error(nil); err != engine.ErrClosed; _, err = st.Read(nil) {
		runtime.Gosched()
	}
	a.Write(frame(cmdSYN, 3))
	<-b.Done()
	close(g.gate)
	<-closed
	if err := b.Err(); err != errFormat {
		t.Errorf("the session: %v", err)
	}
	if _, err := server.Accept(context.Background()); err != errFormat {
		t.Errorf("Accept: %v", err)
	}
}
