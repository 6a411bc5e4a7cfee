package enginetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"syscall"
	"testing"
	"time"

	"turbotunnel/common/engine"
)

// Benchmark measures what eng costs and reaches, in real time:
//
//   - Throughput: one stream, one way, over a network without delay: what the
//     processor can do;
//   - Small: the same in writes of 100 bytes;
//   - Paths: 500 Mbit/s with a round trip of 100 ms, clean, with 1 % of the
//     datagrams repaired in order as the carrier does it, and with 1 % lost;
//   - Idle: the memory that each end of 1 000 idle sessions holds.
func Benchmark(b *testing.B, eng engine.Engine) {
	b.Run("Throughput", func(b *testing.B) { benchmarkTransfer(b, eng, Path{Queue: 1 << 20}, 32<<10) })
	b.Run("Small", func(b *testing.B) { benchmarkTransfer(b, eng, Path{Queue: 1 << 20}, 100) })
	link := Path{Delay: 50 * time.Millisecond, Rate: 500e6 / 8, Queue: 8 << 20}
	repaired, lossy := link, link
	repaired.Loss, repaired.Repair = 0.01, 150*time.Millisecond
	lossy.Loss = 0.01
	for _, path := range []struct {
		name string
		path Path
	}{{"Clean", link}, {"Repaired", repaired}, {"Lossy", lossy}} {
		b.Run("Paths/"+path.name, func(b *testing.B) { benchmarkTransfer(b, eng, path.path, 32<<10) })
	}
	b.Run("Idle", func(b *testing.B) { benchmarkIdle(b, eng) })
}

// benchmarkTransfer moves 1 MB for each of b.N from the client to the server,
// in writes of size bytes.
func benchmarkTransfer(b *testing.B, eng engine.Engine, path Path, size int) {
	const unit = 1 << 20
	x, y := Connect(path, path, 1)
	client, server, err := start(eng, x, y)
	if err != nil {
		b.Fatal(err)
	}
	defer client.Close()
	defer server.Close()
	c, err := client.Open(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	s, err := server.Accept(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan error, 1)
	b.SetBytes(unit)
	b.ReportAllocs()
	before := cpuTime()
	b.ResetTimer()
	go func() {
		block := make([]byte, size)
		for rest := b.N * unit; rest > 0; {
			n, err := c.Write(block[:min(rest, size)])
			if err != nil {
				client.Close() // the reader waits for more
				done <- err
				return
			}
			rest -= n
		}
		done <- c.CloseWrite()
	}()
	n, err := io.Copy(onlyWriter{}, s)
	if err := errors.Join(err, <-done); err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	if n != int64(b.N*unit) {
		b.Fatalf("%d bytes arrived", n)
	}
	b.ReportMetric((cpuTime()-before).Seconds()/(float64(n)/1e9), "cpu-s/GB")
	b.ReportMetric(float64(x.Sent().Bytes)/float64(n), "sent/byte")
	b.ReportMetric(float64(y.Sent().Datagrams)/float64(b.N), "acks/MB")
}

// onlyWriter throws away what is written to it.
type onlyWriter struct{}

func (onlyWriter) Write(p []byte) (int, error) { return len(p), nil }

// cpuTime is what this process has used of the processors.
func cpuTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func start(eng engine.Engine, x, y *Conn) (client, server engine.Session, err error) {
	if client, err = eng.Client(x); err != nil {
		return nil, nil, fmt.Errorf("client: %w", err)
	}
	if server, err = eng.Server(y); err != nil {
		client.Close()
		return nil, nil, fmt.Errorf("server: %w", err)
	}
	return client, server, nil
}

// benchmarkIdle opens 1 000 sessions with a stream each, exchanges a message
// and measures when all of them are silent.
func benchmarkIdle(b *testing.B, eng engine.Engine) {
	const sessions = 1000
	for range b.N {
		before := memory()
		var all []engine.Session
		var streams []engine.Stream
		for range sessions {
			x, y := Connect(Path{}, Path{}, 1)
			client, server, err := start(eng, x, y)
			if err != nil {
				b.Fatal(err)
			}
			all = append(all, client, server)
			c, err := client.Open(context.Background())
			if err != nil {
				b.Fatal(err)
			}
			if _, err := c.Write([]byte("ping")); err != nil {
				b.Fatal(err)
			}
			s, err := server.Accept(context.Background())
			if err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(s, make([]byte, 4)); err != nil {
				b.Fatal(err)
			}
			streams = append(streams, c, s)
		}
		b.ReportMetric(float64(memory()-before)/float64(len(all)), "B/end")
		b.ReportMetric(float64(len(streams)), "ends")
		for _, s := range all {
			s.Close()
		}
	}
}

// memory is what the heap and the stacks hold.
func memory() uint64 {
	runtime.GC()
	runtime.GC() // once more for what the pools hold
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}
