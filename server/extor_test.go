package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// What tor replies is read to the end of the verdict, and no further; what is not
// known is skipped.
func FuzzVerdict(f *testing.F) {
	f.Add([]byte{0x10, 0, 0, 0})
	f.Add([]byte{0x10, 1, 0, 0})
	f.Add([]byte{0x77, 0x77, 0, 3, 1, 2, 3, 0x10, 0, 0, 0, 'x'})
	f.Add([]byte{0, 0, 0xff, 0xff, 0x10, 0})
	f.Fuzz(func(t *testing.T, replies []byte) {
		r := bytes.NewReader(replies)
		err := awaitVerdict(r)
		for rest := replies; len(rest) >= 4; {
			command, length := binary.BigEndian.Uint16(rest), int(binary.BigEndian.Uint16(rest[2:]))
			if len(rest) < 4+length {
				break
			}
			rest = rest[4+length:]
			if command != extOkay && command != extDeny {
				continue
			}
			if (err == nil) != (command == extOkay) {
				t.Fatalf("%v after command %#x", err, command)
			}
			if r.Len() != len(rest) {
				t.Fatalf("%d bytes of the stream are left of %d", r.Len(), len(rest))
			}
			return
		}
		if err == nil {
			t.Fatal("no verdict was taken for a good one")
		}
	})
}

// A server that ends does not wait for tor.
func TestIntroductionEndsWithTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, tor := net.Pipe()
		defer tor.Close()
		defer conn.Close()
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		start := time.Now()
		if err := introduce(ctx, conn, "", "", method); err == nil || errors.Is(err, net.ErrClosed) {
			t.Errorf("error %v", err)
		}
		if took := time.Since(start); took != time.Second {
			t.Errorf("took %v", took)
		}
	})
}
