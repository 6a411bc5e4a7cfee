package mux

import (
	"context"
	"fmt"
	"io"
	"syscall"
	"testing"
)

// reportCPU reports what each of a benchmark's turns has used of the processors,
// which says more than time on a machine that does something else as well.
func reportCPU(b *testing.B) {
	used := func() int64 {
		var u syscall.Rusage
		syscall.Getrusage(syscall.RUSAGE_SELF, &u)
		return u.Utime.Nano() + u.Stime.Nano()
	}
	before := used()
	b.Cleanup(func() { b.ReportMetric(float64(used()-before)/float64(b.N), "cpu-ns/op") })
}

// benchPair returns the two ends of a stream in memory.
func benchPair(b *testing.B) (client, server *Stream) {
	x, y := connect(256 << 10)
	c, s := New(x, x, true), New(y, y, false)
	b.Cleanup(func() { c.Close(); s.Close() })
	from, err := c.Open(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	to, err := s.Accept(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	return from.(*Stream), to.(*Stream)
}

// BenchmarkWrites moves bytes in writes of one size.
func BenchmarkWrites(b *testing.B) {
	for _, size := range []int{100, 1000, frameSize} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			from, to := benchPair(b)
			done := make(chan error, 1)
			go func() { _, err := io.Copy(io.Discard, to); done <- err }()
			block := make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			reportCPU(b)
			for b.Loop() {
				if _, err := from.Write(block); err != nil {
					b.Fatal(err)
				}
			}
			from.CloseWrite()
			if err := <-done; err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkPing waits for the answer to each of its small writes.
func BenchmarkPing(b *testing.B) {
	from, to := benchPair(b)
	go func() {
		io.Copy(struct{ io.Writer }{to}, struct{ io.Reader }{to})
	}()
	ping := make([]byte, 100)
	reportCPU(b)
	for b.Loop() {
		from.Write(ping)
		if _, err := io.ReadFull(from, ping); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRest lets smux of a session with one stream go, and makes it again.
func BenchmarkRest(b *testing.B) {
	x, y := connect(64 << 10)
	client, server := New(x, x, true), New(y, y, false)
	if _, err := client.Open(context.Background()); err != nil {
		b.Fatal(err)
	}
	if _, err := server.Accept(context.Background()); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		for !isResting(server) {
			hurry(server)
		}
		server.use()
		server.life.RUnlock()
	}
	client.Close()
	server.Close()
}
