//! Entry program of the data plane's benchmark: restores the frame that the last run has changed, makes
//! it the next flow's, and tail-calls the program under test. See [`lb_ebpf::harness`].
#![no_std]
#![no_main]

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{xdp_action, xdp_md};
use aya_ebpf::helpers::generated::bpf_xdp_adjust_head;
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, PerCpuArray, ProgramArray};
use aya_ebpf::programs::XdpContext;
use lb_ebpf::harness::{Packet, RESTORED, Turn, WORDS_AT};

#[map]
static PACKET: Array<Packet> = Array::with_max_entries(1, 0);
#[map]
static TURN: PerCpuArray<Turn> = PerCpuArray::with_max_entries(1, 0);
/// The program under test, and `drover_empty`.
#[map]
static TARGETS: ProgramArray = ProgramArray::with_max_entries(2, 0);
/// Frames that reached `drover_sink`.
#[map]
static ARRIVED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Runs the program under test on the next packet.
#[xdp]
pub fn drover_harness(ctx: XdpContext) -> u32 {
    run::<0>(&ctx)
}

/// Runs the empty program on the next packet: what the harness itself costs. A program of its own, since a
/// change of the target has the kernel rewrite code, and that disturbs the measurement.
#[xdp]
pub fn drover_baseline(ctx: XdpContext) -> u32 {
    run::<1>(&ctx)
}

#[inline(always)]
fn run<const TARGET: u32>(ctx: &XdpContext) -> u32 {
    if next_packet(ctx.as_ptr().cast()).is_some() {
        // SAFETY: the context is the program's own.
        unsafe { TARGETS.tail_call(ctx, TARGET) };
    }
    // No such target, or no such frame.
    xdp_action::XDP_ABORTED
}

#[inline(always)]
fn next_packet(ctx: *mut xdp_md) -> Option<()> {
    let packet = PACKET.get(0)?;
    let turn = TURN.get_ptr_mut(0)?;
    let (data, end) = bounds(ctx);
    // By nothing where the program has not changed the length: the empty program, whose time is subtracted,
    // is to be spared nothing that this costs.
    let grown = (end - data) as i32 - packet.length as i32;
    // SAFETY: the context is the program's own.
    if unsafe { bpf_xdp_adjust_head(ctx, grown) } != 0 {
        return None;
    }
    let (data, end) = bounds(ctx);
    if data + RESTORED > end {
        return None;
    }
    // SAFETY: the element is this CPU's own, and XDP does not preempt itself.
    let now = unsafe { *turn };
    // SAFETY: likewise.
    unsafe { *turn = packet.after(now) };
    let words = packet.words_of(now);
    // SAFETY: the frame has `RESTORED` bytes, as was just checked.
    unsafe {
        (data as *mut u32).write_unaligned(packet.head as u32);
        ((data + 4) as *mut u16).write_unaligned((packet.head >> 32) as u16);
        let at = (data + WORDS_AT) as *mut u64;
        // One by one: as an array it becomes a call of memcpy, byte by byte.
        at.write_unaligned(words[0]);
        at.add(1).write_unaligned(words[1]);
        at.add(2).write_unaligned(words[2]);
        at.add(3).write_unaligned(words[3]);
        at.add(4).write_unaligned(words[4]);
        at.add(5).write_unaligned(words[5]);
        at.add(6).write_unaligned(words[6]);
    }
    Some(())
}

/// The frame's first byte and the one behind its last.
#[inline(always)]
fn bounds(ctx: *mut xdp_md) -> (usize, usize) {
    // Volatile: the values change when the frame's length does, which the compiler cannot know.
    // SAFETY: the kernel hands the program a valid context.
    unsafe {
        (
            (&raw const (*ctx).data).read_volatile() as usize,
            (&raw const (*ctx).data_end).read_volatile() as usize,
        )
    }
}

/// The program that does nothing.
#[xdp]
pub fn drover_empty(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// Counts frames at the other end of the link, and drops them.
#[xdp]
pub fn drover_sink(_ctx: XdpContext) -> u32 {
    if let Some(arrived) = ARRIVED.get_ptr_mut(0) {
        // SAFETY: the element is this CPU's own, and XDP does not preempt itself.
        unsafe { *arrived += 1 };
    }
    xdp_action::XDP_DROP
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";
