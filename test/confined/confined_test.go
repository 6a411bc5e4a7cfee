//go:build !race

// Package confined tests what both programs do where there is little: little
// memory, and no files but their own.
//
// It looks at the memory that processes take, which is many times as much under the
// race detector: it is left out there.
package confined

import (
	"bufio"
	"debug/elf"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"turbotunnel/common/engines"
	"turbotunnel/test/programs"
	"turbotunnel/test/target"
)

var long = flag.Bool("long", false, "upload a gigabyte with each engine")

func TestMain(m *testing.M) { os.Exit(programs.Main(m)) }

// TestLittleMemory: a client that has 64 MB carries fifty downloads that nobody
// reads, and an upload beside them, and takes no more than that.
func TestLittleMemory(t *testing.T) {
	const have = 64 << 20
	const toGo = "GOMEMLIMIT=48MiB" // the program's own pages are not Go's, see ptproc.FitMemory
	const unread = 50
	// The engine kcp has a session for each stream: 51 share six connections.
	uploads := map[string]int64{"kcp-smux": 150e6, "kcp": 10e6, "sctp": 50e6, "quic": 50e6}
	for _, engine := range engines.Names() {
		size := uploads[engine]
		if *long {
			size = 1e9
		}
		t.Run(engine, func(t *testing.T) {
			site, err := target.Start()
			if err != nil {
				t.Fatal(err)
			}
			defer site.Close()
			server := programs.Addr(t)
			programs.StartServer(t, server, site.Addr())
			client := programs.StartClient(t, "http://"+server, []string{toGo}, "-engine", engine)
			for range unread {
				conn, err := net.Dial("tcp", client.Addr)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				conn.(*net.TCPConn).SetReadBuffer(4096)
				fmt.Fprintf(conn, "GET /data?seed=1&size=1000000000 HTTP/1.1\r\nHost: x\r\n\r\n")
				conn.SetReadDeadline(time.Now().Add(programs.WaitLimit))
				if _, err := bufio.NewReaderSize(conn, 16).ReadByte(); err != nil {
					t.Fatal(err)
				}
			}
			if err := site.Upload(t.Context(), client.HTTP, 1, size, io.Discard); err != nil {
				t.Error(err)
			}
			took := peak(t, client.ID())
			t.Logf("%d MB up, and the client has taken %d MB at most", size/1e6, took>>20)
			if took > have {
				t.Errorf("want %d MB at most", have>>20)
			}
		})
	}
}

// peak is how many bytes of memory a process has had at most.
func peak(t *testing.T, pid int) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	fields := strings.Fields(rest)
	if len(fields) < 2 {
		t.Fatalf("no VmHWM in\n%s", text)
	}
	n, err := strconv.ParseInt(fields[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n << 10
}

// TestEmptyRoot: the programs that make build makes need no file but themselves,
// and write none.
func TestEmptyRoot(t *testing.T) {
	root := t.TempDir()
	out, err := exec.Command("make", "-s", "-C", programs.Root, "build", "OUT="+root).CombinedOutput()
	if err != nil {
		t.Fatalf("make build: %v\n%s", err, out)
	}
	for _, name := range []string{"turbotunnel-client", "turbotunnel-server"} {
		isStatic(t, filepath.Join(root, name))
	}
	// A folder above may be closed to others, which does not matter to who is in it.
	if err := os.Chmod(root, 0o555); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(root, 0o755)

	site, err := target.Start()
	if err != nil {
		t.Fatal(err)
	}
	defer site.Close()
	addrs := programs.Addrs(t, 2)
	programs.Listen(t, addrs[0], within(root, "/turbotunnel-server", addrs[0], site.Addr()))
	programs.Listen(t, addrs[1], within(root, "/turbotunnel-client", addrs[1], "http://"+addrs[0]))
	conn, err := net.Dial("tcp", addrs[1])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(programs.WaitLimit))
	fmt.Fprint(conn, "GET / HTTP/1.0\r\n\r\n")
	page, err := io.ReadAll(conn)
	if err != nil || !strings.HasSuffix(string(page), target.Page) {
		t.Errorf("the page came as %q, %v", page, err)
	}
	left, err := os.ReadDir(root)
	if err != nil || len(left) != 2 {
		t.Errorf("in the root there are %v, %v", left, err)
	}
}

// within runs a program of a folder that is all it sees, as nobody where that is
// possible, and else as root of a namespace that has nobody else.
func within(root, program string, args ...string) *exec.Cmd {
	attr := &syscall.SysProcAttr{Chroot: root}
	if os.Geteuid() == 0 {
		attr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
	} else {
		attr.Cloneflags = syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	return &exec.Cmd{Path: program, Args: append([]string{program}, args...), Dir: "/", Env: []string{"LANG=C"}, SysProcAttr: attr}
}

// isStatic fails the test if a program needs a loader or a library.
func isStatic(t *testing.T, name string) {
	t.Helper()
	f, err := elf.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	libraries, err := f.ImportedLibraries()
	if err != nil || len(libraries) > 0 {
		t.Errorf("%s needs %v, %v", filepath.Base(name), libraries, err)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Errorf("%s needs a loader", filepath.Base(name))
		}
	}
}
