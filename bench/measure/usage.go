package measure

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// tick is the unit of processor time in /proc.
	tick = 10 * time.Millisecond
	// memoryInterval is how often memory is looked at.
	memoryInterval = time.Second
)

// meter measures what processes use, from its making on.
type meter struct {
	ours     []int
	groups   map[string]int // the servers, by what the figures call them: the root of their processes
	cpu      map[string]time.Duration
	stop     chan struct{}
	sampling sync.WaitGroup
	most     map[string]int64 // bytes
	err      error            // of the last sample that failed
}

func newMeter(servers Servers, processes []*process) (*meter, error) {
	m := &meter{groups: map[string]int{}, stop: make(chan struct{}), most: map[string]int64{}}
	for _, p := range processes {
		m.ours = append(m.ours, p.cmd.Process.Pid)
	}
	for name, pid := range map[string]int{"rabbitmq": servers.RabbitMQPID, "postgres": servers.PostgresPID} {
		if pid != 0 {
			m.groups[name] = pid
		}
	}
	var err error
	if m.cpu, err = m.processorTime(); err != nil {
		return nil, err
	}
	stop := m.stop
	m.sampling.Go(func() { m.sample(stop) })
	return m, nil
}

func (m *meter) close() {
	if m.stop != nil {
		close(m.stop)
		m.stop = nil
	}
	m.sampling.Wait()
}

// read adds what was used by so many orders to the figures.
func (m *meter) read(f Figures, orders int) error {
	now, err := m.processorTime()
	if err != nil {
		return err
	}
	m.close()
	if m.err != nil {
		return m.err
	}
	for name, used := range now {
		f["cpu_"+name] = float64((used - m.cpu[name]).Microseconds()) / float64(orders)
	}
	for name, bytes := range m.most {
		f["memory_"+name] = float64(bytes) / (1 << 20)
	}
	var ours int64
	for _, pid := range m.ours {
		peak, err := status(pid, "VmHWM")
		if err != nil {
			return err
		}
		ours += peak
	}
	f["memory_process"] = float64(ours) / (1 << 20)
	return nil
}

// processorTime is what each group has used so far, and this process.
func (m *meter) processorTime() (map[string]time.Duration, error) {
	var self syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &self); err != nil {
		return nil, fmt.Errorf("reading the processor time of this process: %w", err)
	}
	used := map[string]time.Duration{"generator": time.Duration(self.Utime.Nano() + self.Stime.Nano())}
	processes, err := allProcesses()
	if err != nil {
		return nil, err
	}
	for _, pid := range m.ours {
		p, ok := processes[pid]
		if !ok {
			return nil, fmt.Errorf("process %d has ended", pid)
		}
		used["process"] += p.used
	}
	for name, root := range m.groups {
		for _, pid := range processes.tree(root) {
			used[name] += processes[pid].used + processes[pid].children
		}
	}
	return used, nil
}

// sample keeps the most memory that the servers were seen to use.
func (m *meter) sample(stop <-chan struct{}) {
	tick := time.NewTicker(memoryInterval)
	defer tick.Stop()
	for {
		for name, root := range m.groups {
			used, err := memory(root)
			if err != nil {
				m.err = err
			}
			m.most[name] = max(m.most[name], used)
		}
		select {
		case <-stop:
			return
		case <-tick.C:
		}
	}
}

// memory is what a process and its descendants use: the pages of each of its own, and what they share once.
func memory(root int) (used int64, err error) {
	processes, err := allProcesses()
	if err != nil {
		return 0, err
	}
	var shared int64
	for _, pid := range processes.tree(root) {
		own, err := status(pid, "RssAnon")
		if err != nil {
			continue // it has ended meanwhile
		}
		common, err := status(pid, "RssShmem")
		if err != nil {
			continue
		}
		used += own
		shared = max(shared, common)
	}
	return used + shared, nil
}

// stat is a process as /proc shows it.
type stat struct {
	parent int
	used   time.Duration // by itself
	// children is what its children had used, and theirs, when it took note of their end. Those that live count for
	// themselves.
	children time.Duration
}

type processes map[int]stat

func allProcesses() (processes, error) {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, errors.New("there is no /proc: what processes use can be measured on Linux alone")
	}
	all := make(processes, len(files))
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // it has ended meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("looking at processes: %w", err)
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			return nil, fmt.Errorf("looking at processes: %w", err)
		}
		if all[pid], err = parseStat(text); err != nil {
			return nil, fmt.Errorf("reading %s: %w", file, err)
		}
	}
	return all, nil
}

// parseStat reads a line of /proc/PID/stat. The name in it, in parentheses, may hold anything.
func parseStat(line []byte) (s stat, err error) {
	fields := strings.Fields(string(line[bytes.LastIndexByte(line, ')')+1:]))
	if len(fields) < 15 {
		return s, errors.New("it is too short")
	}
	var numbers [5]int64
	for i, field := range []string{fields[1], fields[11], fields[12], fields[13], fields[14]} {
		if numbers[i], err = strconv.ParseInt(field, 10, 64); err != nil {
			return s, err
		}
	}
	return stat{
		parent: int(numbers[0]), used: time.Duration(numbers[1]+numbers[2]) * tick, children: time.Duration(numbers[3]+numbers[4]) * tick,
	}, nil
}

// tree is a process and all its descendants.
func (all processes) tree(root int) []int {
	if _, ok := all[root]; !ok {
		return nil
	}
	tree := []int{root}
	for i := 0; i < len(tree); i++ {
		for pid, s := range all {
			if s.parent == tree[i] {
				tree = append(tree, pid)
			}
		}
	}
	return tree
}

// status is a size in /proc/PID/status, in bytes.
func status(pid int, name string) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("reading the memory of process %d: %w", pid, err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			kilobytes, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64)
			return kilobytes << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no %s", pid, name)
}
