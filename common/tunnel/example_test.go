package tunnel_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"

	"turbotunnel/common/tunnel"
)

// startServer serves on loopback, answers what each stream brings, and returns how
// to be reached.
func startServer() (cfg tunnel.Config, stop func()) {
	key := tunnel.NewKey()
	server := tunnel.NewServer(tunnel.ServerConfig{Key: key})
	web := httptest.NewServer(server)
	go func() {
		for {
			stream, err := server.Accept()
			if err != nil {
				return
			}
			go func() {
				defer stream.Close()
				question, _ := io.ReadAll(stream)
				fmt.Fprintf(stream, "you said %q", question)
			}()
		}
	}()
	return tunnel.Config{URL: web.URL, Key: key.Public()}, func() {
		server.Close()
		web.Close()
	}
}

// A client opens a stream and uses it as any connection.
func ExampleDialer() {
	cfg, stop := startServer()
	defer stop()

	dialer, err := tunnel.NewDialer(cfg, tunnel.Options{
		Events: func(e tunnel.Event) {
			if e.Err != nil {
				log.Print(e.Kind, ": ", e.Err)
			}
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer dialer.Close()

	stream, err := dialer.Dial(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	defer stream.Close()
	io.WriteString(stream, "hello")
	stream.CloseWrite()
	answer, err := io.ReadAll(stream)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", answer)
	// Output: you said "hello"
}

// A server is an http.Handler on one side and a net.Listener on the other. Here
// net/http is on both: whoever has the key sees the inner site, everybody else
// gets the decoy.
func ExampleServer_Listener() {
	key := tunnel.NewKey()
	server := tunnel.NewServer(tunnel.ServerConfig{
		Key:   key,
		Decoy: http.HandlerFunc(http.NotFound),
	})
	outer := httptest.NewServer(server)
	defer outer.Close()
	go http.Serve(server.Listener(), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "the inner site")
	}))
	defer server.Close()

	dialer, err := tunnel.NewDialer(tunnel.Config{URL: outer.URL, Key: key.Public()}, tunnel.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer dialer.Close()
	client := http.Client{Transport: &http.Transport{DialContext: dialer.DialContext}}
	resp, err := client.Get("http://inner.example/")
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", text)
	// Output: the inner site
}

// A bridge line says how a server is reached.
func ExampleParseBridgeLine() {
	cfg, err := tunnel.ParseBridgeLine("Bridge turbo 192.0.2.1:443 0123456789ABCDEF0123456789ABCDEF01234567 " +
		"url=https://bridge.example/path key=fZwkMWU5glwYluV_KBl3Rnk85gy-46012p0HuF-lXio front=cdn.example")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(cfg.URL, "by way of", cfg.Fronts)

	_, err = tunnel.ParseBridgeLine("url=bridge.example key=fZwkMWU5glwYluV_KBl3Rnk85gy-46012p0HuF-lXio")
	fmt.Println(err)
	// Output:
	// https://bridge.example/path by way of cdn.example
	// url: "bridge.example" has no scheme: write https:// or http:// before it
}
