package tornet

import (
	"bufio"
	"context"
	"encoding/hex"
	"fmt"
	"net"
	"net/textproto"
	"strings"
	"sync"
	"time"
)

// A control is a connection to a tor's control port (tor's control-spec).
// It is safe for concurrent use.
type control struct {
	conn net.Conn

	mu sync.Mutex // one question at a time
	r  *textproto.Reader
}

func dialControl(ctx context.Context, addr string, cookie []byte) (*control, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	c := &control{conn: conn, r: textproto.NewReader(bufio.NewReader(conn))}
	if _, err := c.ask("AUTHENTICATE " + hex.EncodeToString(cookie)); err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// Close closes the connection.
func (c *control) Close() error { return c.conn.Close() }

// ask sends one command and returns the text of its answer.
func (c *control) ask(command string) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.conn.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		return "", err
	}
	word, _, _ := strings.Cut(command, " ")
	if _, err := c.conn.Write([]byte(command + "\r\n")); err != nil {
		return "", fmt.Errorf("control port: %s: %w", word, err)
	}
	_, text, err := c.r.ReadResponse(250)
	if err != nil {
		return "", fmt.Errorf("control port: %s: %w", word, err)
	}
	return text, nil
}

// info asks for one value by GETINFO.
func (c *control) info(key string) (string, error) {
	text, err := c.ask("GETINFO " + key)
	if err != nil {
		return "", err
	}
	value, ok := strings.CutPrefix(text, key+"=")
	if !ok {
		return "", fmt.Errorf("control port: GETINFO %s: answer %q", key, text)
	}
	value, _, _ = strings.Cut(value, "\n")
	return value, nil
}
