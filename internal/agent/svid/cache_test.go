package svid

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/legation-io/legation/internal/agent/upstream"
	"github.com/legation-io/legation/internal/durable"
	"github.com/legation-io/legation/internal/sealed"
)

func TestARestartWithoutAControlPlaneServesWhatWasHeld(t *testing.T) {
	inBubble(t, func(w *world) {
		dir := t.TempDir()
		box := func() *sealed.Box {
			b, err := sealed.Open(durable.OS, dir)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		m := w.run(Params{Sealed: box()})
		w.declare(entry("web", "unix:uid:1"), entry("gone", "unix:uid:1"))
		s := m.Subscribe(web, "uid/1")
		first := w.next(s)
		synctest.Wait()
		s.Close()
		w.stop()
		raw, err := os.ReadFile(filepath.Join(dir, "svids.sealed"))
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range first.SVIDs {
			if bytes.Contains(raw, v.KeyPKCS8) {
				t.Error("a key lies unsealed on disk")
			}
		}

		w.set(func() { w.down = true })
		w.change(func(v *upstream.View) {
			v.Connected = false
			delete(v.Entries, "default/gone")
		})
		time.Sleep(time.Hour)
		m = w.run(Params{Sealed: box()})
		s = m.Subscribe(web, "uid/1")
		u := w.next(s)
		if len(u.SVIDs) != 1 || u.SVIDs[0].Serial != first.SVIDs[1].Serial || !bytes.Equal(u.SVIDs[0].KeyPKCS8, first.SVIDs[1].KeyPKCS8) {
			t.Errorf("restored %v, held were %v", ids(u), ids(first))
		}
		if !u.SVIDs[0].RenewAt.Equal(first.SVIDs[1].RenewAt) {
			t.Error("the time of renewal was lost")
		}
		other := m.Subscribe(web, "uid/2")
		w.quiet(other, time.Second)
		other.Close()
		s.Close()
		w.stop()

		t.Run("what expired meanwhile is not served", func(t *testing.T) {
			time.Sleep(24 * time.Hour)
			m := w.run(Params{Sealed: box()})
			s := m.Subscribe(web, "uid/1")
			defer s.Close()
			w.quiet(s, time.Second)
			w.stop()
		})
		t.Run("a damaged cache is left out and said", func(t *testing.T) {
			os.WriteFile(filepath.Join(dir, "svids.sealed"), []byte("damaged"), 0o600)
			var log bytes.Buffer
			w.set(func() { w.down = false })
			m := w.run(Params{Sealed: box(), Log: slog.New(slog.NewTextHandler(&log, nil))})
			s := m.Subscribe(web, "uid/1")
			defer s.Close()
			w.next(s)
			w.stop()
			if !bytes.Contains(log.Bytes(), []byte("sealed cache is not used")) {
				t.Errorf("log: %s", log.Bytes())
			}
		})
	})
}

func TestARevokedSVIDIsNotRestored(t *testing.T) {
	inBubble(t, func(w *world) {
		b, err := sealed.Open(durable.OS, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		m := w.run(Params{Sealed: b})
		w.declare(entry("web", "unix:uid:1"))
		s := m.Subscribe(web, "uid/1")
		first := w.next(s).SVIDs[0]
		synctest.Wait()
		s.Close()
		w.stop()
		w.change(revoking(first.Serial))
		m = w.run(Params{Sealed: b})
		s = m.Subscribe(web, "uid/1")
		defer s.Close()
		if w.next(s).SVIDs[0].Serial == first.Serial {
			t.Error("a revoked SVID came back by a restart")
		}
	})
}

func TestA22NoKeyInLogs(t *testing.T) {
	inBubble(t, func(w *world) {
		var log bytes.Buffer
		m := w.run(Params{Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
		w.declare(entry("web", "unix:uid:1"))
		s := m.Subscribe(web, "uid/1")
		defer s.Close()
		first := w.next(s).SVIDs[0]
		w.change(revoking(first.Serial))
		w.next(s)
		w.change(func(v *upstream.View) { delete(v.Entries, "default/web") })
		w.stop()
		if bytes.Contains(log.Bytes(), first.KeyPKCS8) || bytes.Contains(log.Bytes(), []byte("token-")) || log.Len() == 0 {
			t.Errorf("log: %s", log.Bytes())
		}
	})
}
