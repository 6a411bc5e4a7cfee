package main

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"time"
)

// extTimeout is how long tor may take to take over a connection. Both sides are
// on one machine, mostly.
const extTimeout = 5 * time.Second

// Commands of the Extended ORPort and their replies (ext-orport-spec, section 3.1).
const (
	extDone      = 0x0000
	extUserAddr  = 0x0001
	extTransport = 0x0002
	extOkay      = 0x1000
	extDeny      = 0x1001
)

// safeCookie is the one kind of authentication that there is (ext-orport-spec,
// section 2.1).
const safeCookie = 1

const (
	cookieHeader = "! Extended ORPort Auth Cookie !\n"
	cookieLength = 32 // bytes, as those of nonces and hashes
)

// introduce tells tor, at its Extended ORPort, who the client is (empty: nobody
// knows), and by which transport it comes. If it returns nil, conn carries the
// stream from there on. The cookie is read anew each time: tor writes it after it
// has started its transports (tor's bug 15240), and with each start of its own.
//
// goptlib has this, too, but takes any reply between the last command and the
// verdict for the end, where the specification wants those unknown to be
// ignored; and it cannot be interrupted.
func introduce(ctx context.Context, conn net.Conn, cookieFile, userAddr, transport string) error {
	if err := conn.SetDeadline(time.Now().Add(extTimeout)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err := authenticate(conn, cookieFile)
	if err == nil {
		err = describe(conn, userAddr, transport)
	}
	if err == nil && !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("tor's ExtORPort: %w", err)
	}
	return conn.SetDeadline(time.Time{})
}

// authenticate proves to both sides that they read the same file
// (ext-orport-spec, section 2.1.3).
func authenticate(conn io.ReadWriter, cookieFile string) error {
	kinds, err := readKinds(conn)
	if err != nil {
		return err
	}
	if !slices.Contains(kinds, safeCookie) {
		return errors.New("it does not offer authentication by cookie")
	}
	var nonce [cookieLength]byte
	rand.Read(nonce[:])
	if _, err := conn.Write(append([]byte{safeCookie}, nonce[:]...)); err != nil {
		return err
	}
	var theirs struct{ hash, nonce [cookieLength]byte }
	if _, err := io.ReadFull(conn, theirs.hash[:]); err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, theirs.nonce[:]); err != nil {
		return err
	}
	cookie, err := readCookie(cookieFile)
	if err != nil {
		return fmt.Errorf("its cookie: %w", err)
	}
	hash := func(which string) []byte {
		h := hmac.New(sha256.New, cookie)
		io.WriteString(h, "ExtORPort authentication "+which+" hash")
		h.Write(nonce[:])
		h.Write(theirs.nonce[:])
		return h.Sum(nil)
	}
	if !hmac.Equal(theirs.hash[:], hash("server-to-client")) {
		return errors.New("mismatch in server hash: it has another cookie than the file " + cookieFile)
	}
	if _, err := conn.Write(hash("client-to-server")); err != nil {
		return err
	}
	var status [1]byte
	if _, err := io.ReadFull(conn, status[:]); err != nil {
		return err
	}
	if status[0] != 1 {
		return errors.New("it rejects the authentication")
	}
	return nil
}

// readKinds reads the kinds of authentication on offer, which a zero ends.
func readKinds(r io.Reader) ([]byte, error) {
	var kinds []byte
	for b := make([]byte, 1); len(kinds) < 256; kinds = append(kinds, b[0]) {
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, err
		}
		if b[0] == 0 {
			return kinds, nil
		}
	}
	return nil, errors.New("no end of auth types after 256 of them")
}

// readCookie reads the file that tor has written (ext-orport-spec, section 2.1.2).
func readCookie(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, stateFileMax))
	if err != nil {
		return nil, err
	}
	cookie, found := bytes.CutPrefix(text, []byte(cookieHeader))
	if !found || len(cookie) != cookieLength {
		return nil, fmt.Errorf("%s is no cookie of an ExtORPort", path)
	}
	return cookie, nil
}

// describe says whose connection it is, and waits for tor's word on it.
func describe(conn io.ReadWriter, userAddr, transport string) error {
	var commands []byte
	if userAddr != "" {
		commands = appendCommand(commands, extUserAddr, userAddr)
	}
	commands = appendCommand(commands, extTransport, transport)
	commands = appendCommand(commands, extDone, "")
	if _, err := conn.Write(commands); err != nil {
		return err
	}
	return awaitVerdict(conn)
}

// appendCommand appends a command: its number, its body's length, the body.
func appendCommand(b []byte, command uint16, body string) []byte {
	b = binary.BigEndian.AppendUint16(b, command)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	return append(b, body...)
}

// awaitVerdict reads replies until one takes the connection over, which returns
// nil, or denies that. "Commands and replies that are not recognized are
// ignored" (ext-orport-spec, section 3.1).
func awaitVerdict(r io.Reader) error {
	for {
		var head [4]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return err
		}
		length := int64(binary.BigEndian.Uint16(head[2:]))
		if _, err := io.CopyN(io.Discard, r, length); err != nil {
			return err
		}
		switch binary.BigEndian.Uint16(head[:]) {
		case extOkay:
			return nil
		case extDeny:
			return errors.New("it refuses the connection (DENY)")
		}
	}
}
