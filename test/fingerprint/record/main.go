// Command record writes down how an installed browser looks, for utls=file:PATH of
// the client, and for the looks that are built into it.
//
//	go run ./fingerprint/record [-o FILE] chromium|firefox [PROGRAM]
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"turbotunnel/common/front"
	"turbotunnel/test/fingerprint"
)

// tries is how often a browser is started until its connections show all.
const tries = 10

func main() {
	out := flag.String("o", "", "write to this file instead of stdout")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: record [-o FILE] chromium|firefox [PROGRAM]")
	}
	flag.Parse()
	if err := run(*out, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "record:", err)
		os.Exit(1)
	}
}

func run(out string, args []string) error {
	if len(args) < 1 || len(args) > 2 {
		return errors.New("which browser? chromium or firefox")
	}
	load := map[string]func(program, dir, protocol string) ([]*fingerprint.Connection, error){
		"chromium": fingerprint.Chromium,
		"firefox":  fingerprint.Firefox,
	}[args[0]]
	if load == nil {
		return fmt.Errorf("browser %q; accepted: chromium, firefox", args[0])
	}
	program, err := exec.LookPath(args[len(args)-1])
	if err != nil {
		return err
	}
	rec, err := record(program, load)
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(rec, "", "\t")
	if err != nil {
		return err
	}
	text = append(text, '\n')
	if out == "" {
		_, err = os.Stdout.Write(text)
		return err
	}
	return os.WriteFile(out, text, 0o644)
}

// record has a browser load the page until it shows all that there is to see.
func record(program string, load func(program, dir, protocol string) ([]*fingerprint.Connection, error)) (rec front.Recording, err error) {
	name, err := exec.Command(program, "--version").Output()
	if err != nil {
		return rec, err
	}
	dir, err := os.MkdirTemp("", "record-")
	if err != nil {
		return rec, err
	}
	defer os.RemoveAll(dir)
	connections := func(which, protocol string) ([]*fingerprint.Connection, error) {
		own := filepath.Join(dir, which)
		if err := os.Mkdir(own, 0o700); err != nil {
			return nil, err
		}
		return load(program, own, protocol)
	}
	h1, err := connections("http1", "http/1.1")
	if err != nil {
		return rec, err
	}
	for i := range tries {
		h2, err := connections(fmt.Sprint("http2-", i), "h2")
		if err != nil {
			return rec, err
		}
		rec, err = fingerprint.NewRecording(strings.TrimSpace(string(name)), h2, h1)
		if !errors.Is(err, fingerprint.ErrAgain) {
			return rec, err
		}
	}
	return rec, fingerprint.ErrAgain
}
