//! Charts of a run, as SVG.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::coord::combinators::LogCoord;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::results::{Results, Row};

const OURS: RGBColor = RGBColor(31, 119, 180);
const FLOOR: RGBColor = RGBColor(90, 90, 90);
const PEER: RGBColor = RGBColor(214, 39, 40);
const CURVES: [RGBColor; 8] = [
    OURS,
    PEER,
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
    RGBColor(255, 127, 14),
    RGBColor(140, 86, 75),
    RGBColor(23, 190, 207),
    RGBColor(188, 189, 34),
];

/// Every row: ours as a bar, floor and peer as marks on it. Nothing is drawn of a run without rows.
pub(super) fn rows(results: &Results, path: &Path) -> Result<()> {
    let rows: Vec<&Row> = results.rows.iter().filter(|row| row.group != "floor").collect();
    if rows.is_empty() {
        return Ok(());
    }
    let height = 80 + 18 * rows.len() as u32;
    let area = SVGBackend::new(path, (1000, height)).into_drawing_area();
    draw_rows(&area, &rows).map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
}

/// How the cost of routing grows with the number of vCPUs: one line a destination.
pub(super) fn curves(results: &Results, path: &Path) -> Result<()> {
    let mut curves: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for row in &results.rows {
        if let (Some(curve), Some(vcpus)) = (&row.curve, row.vcpus) {
            let mode = if row.mode == "xapic" { "xAPIC" } else { "x2APIC" };
            let name =
                if curve.contains("APIC") { curve.clone() } else { format!("{curve}, {mode}") };
            curves.entry(name).or_default().push((f64::from(vcpus), row.ours.median));
        }
    }
    if curves.is_empty() {
        return Ok(());
    }
    let area = SVGBackend::new(path, (900, 520)).into_drawing_area();
    draw_curves(&area, &curves).map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
}

type Area<'p> = DrawingArea<SVGBackend<'p>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw_rows(area: &Area<'_>, rows: &[&Row]) -> Drawn {
    area.fill(&WHITE)?;
    let most = rows.iter().map(|row| row.ours.median).fold(1.0, f64::max);
    let count = rows.len() as f64;
    let mut chart = ChartBuilder::on(area)
        .caption(
            "nanoseconds an operation: ours (bar), floor (grey), x86_vlapic (red)",
            ("sans-serif", 16),
        )
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(470)
        .build_cartesian_2d((0.2..2.0 * most).log_scale(), count..0.0)?;
    // The axis would thin its labels out; they are drawn below, one a row.
    chart.configure_mesh().disable_y_mesh().disable_y_axis().y_labels(0).draw()?;
    let strip = |at: usize, from: f64, to: f64| (at as f64 + from, at as f64 + to);
    for (at, row) in rows.iter().enumerate() {
        let (top, bottom) = strip(at, 0.2, 0.8);
        let bar = [(0.2, top), (row.ours.median, bottom)];
        chart.draw_series([Rectangle::new(bar, OURS.mix(0.7).filled())])?;
        for (figure, colour) in [(&row.floor, FLOOR), (&row.peer, PEER)] {
            if let Some(figure) = figure {
                let (top, bottom) = strip(at, 0.05, 0.95);
                let line = [(figure.median, top), (figure.median, bottom)];
                chart.draw_series([PathElement::new(line, colour.stroke_width(3))])?;
            }
        }
    }
    let (x, y) = chart.plotting_area().get_pixel_range();
    let step = f64::from(y.end - y.start) / count;
    let style = ("sans-serif", 12).into_text_style(area).pos(Pos::new(HPos::Right, VPos::Center));
    for (at, row) in rows.iter().enumerate() {
        let middle = f64::from(y.start) + (at as f64 + 0.5) * step;
        area.draw_text(&label(row), &style, (x.start - 8, middle as i32))?;
    }
    area.present()?;
    Ok(())
}

fn label(row: &Row) -> String {
    match row.mode.as_str() {
        "-" => row.what.clone(),
        mode => format!("{} ({mode})", row.what),
    }
}

fn draw_curves(area: &Area<'_>, curves: &BTreeMap<String, Vec<(f64, f64)>>) -> Drawn {
    area.fill(&WHITE)?;
    let points = || curves.values().flatten();
    let most = points().map(|point| point.1).fold(10.0, f64::max);
    let least = points().map(|point| point.1).fold(f64::MAX, f64::min);
    let mut chart = ChartBuilder::on(area)
        .caption("Routing one message: cost by the number of vCPUs", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(60)
        .build_cartesian_2d(
            (1.8f64..5000.0).log_scale().base(2.0),
            (0.7 * least..1.5 * most).log_scale(),
        )?;
    chart
        .configure_mesh()
        .x_desc("vCPUs in the VM")
        .y_desc("nanoseconds")
        .x_label_formatter(&|vcpus| format!("{vcpus:.0}"))
        .y_label_formatter(&|cost| format!("{cost:.0}"))
        .draw()?;
    for ((name, points), colour) in curves.iter().zip(CURVES.into_iter().cycle()) {
        draw_curve(&mut chart, name, points, colour)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    area.present()?;
    Ok(())
}

type Chart<'a, 'p> = ChartContext<'a, SVGBackend<'p>, Cartesian2d<LogCoord<f64>, LogCoord<f64>>>;

fn draw_curve(
    chart: &mut Chart<'_, '_>,
    name: &str,
    points: &[(f64, f64)],
    colour: RGBColor,
) -> Drawn {
    let key = move |(x, y)| PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2));
    let line = LineSeries::new(points.iter().copied(), colour.stroke_width(2));
    chart.draw_series(line)?.label(name).legend(key);
    chart.draw_series(points.iter().map(|&point| Circle::new(point, 3, colour.filled())))?;
    Ok(())
}
