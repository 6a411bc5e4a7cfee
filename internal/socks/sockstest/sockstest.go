// Package sockstest is a client of package socks, for tests.
package sockstest

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"slices"
)

// Send sends a request with the arguments of a bridge line, as tor does: they are the
// user name, and what does not fit there the password.
func Send(conn net.Conn, args string) error {
	user, password := args, "\x00"
	if len(args) > 255 {
		user, password = args[:255], args[255:]
	}
	auth := slices.Concat([]byte{1, byte(len(user))}, []byte(user), []byte{byte(len(password))}, []byte(password))
	for _, step := range []struct {
		send  string
		reply int
	}{
		{"\x05\x01\x02", 2},
		{string(auth), 2},
		{"\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x50", 0},
	} {
		if _, err := io.WriteString(conn, step.send); err != nil {
			return err
		}
		if _, err := io.ReadFull(conn, make([]byte, step.reply)); err != nil {
			return err
		}
	}
	return nil
}

// Request makes a request and returns the code of the reply.
func Request(conn net.Conn, args string) (byte, error) {
	if err := Send(conn, args); err != nil {
		return 0, err
	}
	return Reply(conn)
}

// Reply returns the code of the reply to a request.
func Reply(conn net.Conn) (byte, error) {
	reply := make([]byte, 10)
	if _, err := io.ReadFull(conn, reply); err != nil {
		return 0, fmt.Errorf("no reply: %w", err)
	}
	if !bytes.Equal(reply[2:], []byte{0, 1, 0, 0, 0, 0, 0, 0}) || reply[0] != 5 {
		return 0, fmt.Errorf("reply % x", reply)
	}
	return reply[1], nil
}
