package measure

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/procfs"
)

const (
	// tick is the unit of processor time in /proc.
	tick = 10 * time.Millisecond
	// memoryInterval is how often memory is looked at.
	memoryInterval = time.Second
	// alone is what begins the names of the figures of a service that has a process of its own.
	alone = "service_"
	// othersCPU is how many cores were busy with what is neither ours nor the servers': the kernel and other programs, and
	// what the host took for other machines. It belongs beside figures that are compared.
	othersCPU = "others_cores"
)

// meter measures the CPU time and memory that processes use, from its creation on.
type meter struct {
	ours     []*process
	groups   map[string]int // the servers, by what the figures call them: the root of their processes
	cpu      map[string]time.Duration
	begin    time.Time
	busy     time.Duration // of the whole machine so far
	stop     chan struct{}
	sampling sync.WaitGroup
	peak     map[string]int64 // bytes
	err      error            // of the last sample that failed
}

func newMeter(servers Servers, processes []*process) (*meter, error) {
	m := &meter{ours: processes, groups: map[string]int{}, stop: make(chan struct{}), peak: map[string]int64{}}
	for name, pid := range map[string]int{"rabbitmq": servers.RabbitMQPID, "postgres": servers.PostgresPID} {
		if pid != 0 {
			m.groups[name] = pid
		}
	}
	var err error
	if m.cpu, err = m.processorTime(); err != nil {
		return nil, err
	}
	if m.busy, err = machineTime(); err != nil {
		return nil, err
	}
	m.begin = time.Now()
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

// read adds to the figures what the processes have used, CPU time divided by orders.
func (m *meter) read(f Figures, orders int) error {
	now, err := m.processorTime()
	if err != nil {
		return err
	}
	busy, err := machineTime()
	if err != nil {
		return err
	}
	others, took := busy-m.busy, time.Since(m.begin)
	m.close()
	if m.err != nil {
		return m.err
	}
	for name, used := range now {
		f["cpu_"+name] = float64((used - m.cpu[name]).Microseconds()) / float64(orders)
		if !strings.HasPrefix(name, alone) { // its processes are counted as the whole already
			others -= used - m.cpu[name]
		}
	}
	if len(m.groups) == 2 { // else a server's work would be taken for somebody else's
		f[othersCPU] = max(others.Seconds(), 0) / took.Seconds()
	}
	for name, bytes := range m.peak {
		f["memory_"+name] = float64(bytes) / (1 << 20)
	}
	for _, p := range m.ours {
		s, err := status(p.cmd.Process.Pid)
		if err != nil {
			return err
		}
		used := float64(s.VmHWM) / (1 << 20)
		f["memory_process"] += used
		if p.service != "" {
			f["memory_"+alone+p.service] = used
		}
	}
	return nil
}

// machineTime is the CPU time that all processes of the machine, and the kernel, have used so far.
func machineTime() (time.Duration, error) {
	fs, err := procfs.NewDefaultFS()
	if err != nil {
		return 0, fmt.Errorf("reading the machine's processor time: %w", err)
	}
	s, err := fs.Stat()
	if err != nil {
		return 0, fmt.Errorf("reading the machine's processor time: %w", err)
	}
	c := s.CPUTotal
	return time.Duration((c.User + c.Nice + c.System + c.IRQ + c.SoftIRQ + c.Steal) * float64(time.Second)), nil
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
	for _, p := range m.ours {
		stat, ok := processes[p.cmd.Process.Pid]
		if !ok {
			return nil, fmt.Errorf("process %d (%s) has ended", p.cmd.Process.Pid, p.name)
		}
		used["process"] += selfTime(stat)
		if p.service != "" {
			used[alone+p.service] = selfTime(stat)
		}
	}
	for name, root := range m.groups {
		for _, pid := range processes.tree(root) {
			used[name] += selfTime(processes[pid]) + endedTime(processes[pid])
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
			m.peak[name] = max(m.peak[name], used)
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
		s, err := status(pid)
		if err != nil {
			continue // it has ended meanwhile
		}
		used += int64(s.RssAnon)
		shared = max(shared, int64(s.RssShmem))
	}
	return used + shared, nil
}

// processTable is all processes of the machine, by their number.
type processTable map[int]procfs.ProcStat

func allProcesses() (processTable, error) {
	procs, err := procfs.AllProcs()
	if err != nil {
		return nil, fmt.Errorf("looking at processes: %w (what they use can be measured on Linux alone)", err)
	}
	all := make(processTable, len(procs))
	for _, p := range procs {
		stat, err := p.Stat()
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // it has ended meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("looking at process %d: %w", p.PID, err)
		}
		all[p.PID] = stat
	}
	return all, nil
}

// selfTime is the processor time of the process itself.
func selfTime(s procfs.ProcStat) time.Duration { return time.Duration(s.UTime+s.STime) * tick }

// endedTime is the CPU time of its children that have ended and been waited for, with that of theirs. Those that still run are
// counted as processes of their own.
func endedTime(s procfs.ProcStat) time.Duration { return time.Duration(s.CUTime+s.CSTime) * tick }

// tree is a process and all its descendants.
func (all processTable) tree(root int) []int {
	if _, ok := all[root]; !ok {
		return nil
	}
	tree := []int{root}
	for i := 0; i < len(tree); i++ {
		for pid, s := range all {
			if s.PPID == tree[i] {
				tree = append(tree, pid)
			}
		}
	}
	return tree
}

// status is the memory of a process, in bytes.
func status(pid int) (procfs.ProcStatus, error) {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return procfs.ProcStatus{}, fmt.Errorf("reading the memory of process %d: %w", pid, err)
	}
	return p.NewStatus()
}
